"""Scales of n-bit products in a file: float16 where that loses nothing."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hybridkit.exporting.functions import function
from hybridkit.exporting.graph import packed_nodes
from hybridkit.exporting.scales import halve_scales, widen_scales
from hybridkit.packing.codecs import codec
from hybridkit.runtime.library import register

N, K, SIZE = 48, 70, 32
OPERATOR = "NBit4MatMulInt8Blocks"


def model_of(scale):
    """A product, rows of its scales, and their sum."""
    rng = np.random.default_rng(0)
    codes = codec("nbit4").pack(rng.integers(-8, 8, (N, K)).astype(np.int8))
    sizes = {"K": K, "N": N, "layout": 0, "group_size": SIZE}
    nodes = [
        helper.make_node(OPERATOR, ["x", "w.codes", "scale", "bias"], ["y"], domain="hybridkit", **sizes),
        helper.make_node("Gather", ["scale", "rows"], ["found"], axis=0),
        helper.make_node("Neg", ["found"], ["z"]),
        helper.make_node("ReduceSum", ["scale"], ["sum"]),
    ]
    tensors = {"w.codes": codes, "scale": scale, "bias": np.zeros(N, np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", K]),
            helper.make_tensor_value_info("rows", TensorProto.INT64, ["m"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z", "sum")],
        [numpy_helper.from_array(content, name) for name, content in tensors.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("hybridkit", 1)]
    functions = [function(OPERATOR, 18)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=9))


def outputs(model, native):
    options = onnxruntime.SessionOptions()
    if native:
        register(options)
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(3, K)).astype(np.float32)
    return session.run(None, {"x": x, "rows": np.array([0, 47, 5])})


def scales(dtype):
    return np.random.default_rng(2).uniform(0.01, 2, (N, -(-K // SIZE))).astype(dtype).astype(np.float32)


def type_of_scale(model):
    [layer] = packed_nodes(model)
    return layer.scale.dtype


@pytest.mark.parametrize("native", [True, False])
def test_a_file_with_halves_computes_the_same(native):
    model = model_of(scales(np.float16))
    expected = outputs(model, native)
    halve_scales(model)
    assert type_of_scale(model) == ir.DataType.FLOAT16
    halved = outputs(model, native)
    widen_scales(model)
    assert type_of_scale(model) == ir.DataType.FLOAT
    for one, two, three in zip(expected, halved, outputs(model, native), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("wrong", [1 + 2**-12, 1e6, 1e-9])
def test_one_that_float16_does_not_hold_leaves_all_as_they_are(wrong):
    scale = scales(np.float16)
    scale[7, 1] = wrong
    model = model_of(scale)
    before = ir.to_proto(model).SerializeToString()
    halve_scales(model)
    assert ir.to_proto(model).SerializeToString() == before
