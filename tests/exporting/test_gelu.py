"""ONNX Runtime computes an exported GELU in one node."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hybridkit.exporting import export
from hybridkit.exporting.gelu import reorder_gelu


def optimized(path, folder):
    """The operators that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("opset", [18, 20])
def test_a_gelu_of_torch_becomes_one_node(tmp_path, opset):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    x = torch.randn(4, 5)
    path = tmp_path / "a.onnx"
    export(network, None, path, example_inputs=[x], opset=opset)
    found = optimized(path, tmp_path)
    assert "Gelu" in found
    assert "Erf" not in found
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], network(x).detach(), atol=1e-6)


def graph(*, factor=0.5, other=False, twice=False):
    """x * (factor * (1 + erf(x / sqrt 2))), with `other` in place of the first x."""
    constants = {"half": factor, "one": 1.0, "root": 2**0.5}
    nodes = [
        helper.make_node("Div", ["x", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["a"]),
        helper.make_node("Mul", ["half", "a"], ["h"]),
        helper.make_node("Mul", ["z" if other else "x", "h"], ["y"]),
    ]
    outputs = ["y", *(["h"] if twice else [])]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "gelu",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xz"],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in outputs],
            [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    return ir.from_proto(model)


def test_halving_moves_to_the_end_and_the_bits_stay():
    x = np.random.default_rng(0).normal(scale=3, size=1000).astype(np.float32)
    model, results, options = graph(), [], onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for _ in range(2):
        session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
        results.append(session.run(None, {"x": x, "z": x})[0])
        reordered = reorder_gelu(model)
    assert reordered == 0  # the second time there is nothing left to do
    assert [v.name for v in model.graph.node(4).inputs] == ["half", "h"]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("change", [{"factor": 0.4}, {"other": True}, {"twice": True}])
def test_what_is_no_gelu_stays(change):
    assert reorder_gelu(graph(**change)) == 0
