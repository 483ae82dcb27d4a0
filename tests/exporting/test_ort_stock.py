"""The stock operators that quantising a file writes, on any ONNX Runtime. Needs no torch."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hybridkit.errors import HybridkitError
from hybridkit.exporting.onnx_quantize import quantize_onnx
from hybridkit.packing.codecs import codec

VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
SINCE = {(2, "float"): (1, 24), (2, "int8"): (1, 24), (8, "int8"): (1, 22)}
KNOWN = {  # what the operator is documented, and was tried, to take
    "bits": {2, 4, 8},
    "block_size": {16, 32, 64, 128, 256},
    "accuracy_level": {1, 4},
}

pytestmark = pytest.mark.skipif(VERSION < (1, 20), reason="hybridkit supports ONNX Runtime from 1.20 on")


def source(folder, node, weight, x_shape, y_rank, kind=TensorProto.FLOAT, opset=18):
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, x_shape)],
        [helper.make_tensor_value_info("y", kind, [None] * y_rank)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    onnx.save(model, folder / "source.onnx")
    return folder / "source.onnx"


def run(path, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options).run(None, {"x": x})[0]


def attributes(node):
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def dequantized(node, tensors):
    """The weight [N, K] that a MatMulNBits stands for, by its documentation alone."""
    said = attributes(node)
    N, K, bits, block = said["N"], said["K"], said["bits"], said["block_size"]
    packed, scales = tensors[node.input[1]], tensors[node.input[2]]
    blocks = -(-K // block)
    assert packed.shape == (N, blocks, block * bits // 8)
    assert scales.size == N * blocks
    digits = np.stack([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], -1)
    zero = np.int64(1 << bits - 1)
    if len(node.input) > 3:
        points = tensors[node.input[3]].reshape(N, -1)
        assert bits == 4
        assert points.shape[1] == -(-blocks // 2)
        zero = np.stack([points & 15, points >> 4], -1).reshape(N, -1)[:, :blocks, None].astype(np.int64)
    codes = (digits.reshape(N, blocks, block) - zero).astype(np.float32)
    return (codes * scales.reshape(N, blocks, 1)).reshape(N, -1)[:, :K]


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("group", [0, 10, 16, 32, 64, 128, 256, 512, 1024, 4096])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_n_bit_products(bits, group, activations, tmp_path):
    """Groups above 256 become several blocks of the same scale, and compute what they did."""
    random = np.random.default_rng(bits)
    weight, x = random.normal(size=(1100, 24)), random.normal(size=(5, 1100))
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    given = source(tmp_path, node, weight.astype(np.float32), ["n", 1100], 2)
    target = tmp_path / "packed.onnx"
    how = {"quantizer": "nbit", "options": {"bits": bits, "group_size": group}, "activations": activations}
    needed = SINCE.get((bits, activations), (1, 20)) if group != 10 else (1, 20)
    if needed > VERSION:
        with pytest.raises(HybridkitError, match=f"needs ONNX Runtime {needed[0]}.{needed[1]}, and this is"):
            quantize_onnx(given, target, **how)
        assert not target.exists()
        return
    report = quantize_onnx(given, target, **how)
    assert report.runtime == ".".join(map(str, needed))
    got, want = run(target, x.astype(np.float32)), run(given, x.astype(np.float32))
    model = onnx.load(target)
    nodes = [n for n in model.graph.node if n.op_type == "MatMulNBits"]
    halves = bits == 8 and activations == "float"  # two products of 4 bits
    assert len(nodes) == (group != 10) * (1 + halves)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    stored = sum(tensors[name].nbytes for node in nodes for name in node.input[1:])
    [layer] = report.layers
    assert layer.bytes_after == stored or not nodes
    for node in nodes:
        said = attributes(node)
        assert said["bits"] == (4 if halves else bits)
        assert set(said) == {"N", "K", *KNOWN}
        assert all(said[name] in values for name, values in KNOWN.items())
    if nodes:
        want = x.astype(np.float32) @ sum(dequantized(node, tensors) for node in nodes).T
    tolerance = {2: 1.0, 4: 0.2, 8: 0.02}[bits] if not nodes else 0.02 if activations == "int8" else 1e-5
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ternary-mse", {}),
        ("binary", {}),
        *[("nbit", {"bits": b, "group_size": g}) for b in (2, 4, 8) for g in (0, 8)],
    ],
)
def test_convolutions_and_products_of_halves(name, options, activations, kind, opset, tmp_path):
    """Weights that the quantizer represents exactly give the source's outputs, but for int8 activations."""
    random = np.random.default_rng(0)
    weight = random.choice([-1.0, 1.0], (16, 8, 3, 3)).astype(kind)
    x = random.normal(size=(2, 16, 9, 9)).astype(kind)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "c", group=2, pads=[1, 1, 1, 1])
    onnx_kind = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    given = source(tmp_path, node, weight, ["n", 16, "h", "w"], 4, onnx_kind, opset)
    report = quantize_onnx(
        given, tmp_path / "packed.onnx", quantizer=name, options=options, activations=activations
    )
    assert report.runtime == "1.20"
    got, want = run(tmp_path / "packed.onnx", x), run(given, x)
    assert got.dtype == kind
    got, want = got.astype(np.float64), want.astype(np.float64)
    exact = activations == "float" or name == "nbit"
    assert np.linalg.norm(got - want) <= (5e-3 if exact else 0.02) * np.linalg.norm(want)


def test_codes_are_those_of_the_packing_codec():
    codes = np.arange(-8, 8, dtype=np.int8).reshape(1, 16)
    packed = codec("nbit4").pack(codes)
    assert (packed & 15).tolist() == [[0, 2, 4, 6, 8, 10, 12, 14]]
    assert (packed >> 4).tolist() == [[1, 3, 5, 7, 9, 11, 13, 15]]
