"""ONNX files as strangers write them, for the tests of quantising one."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}


def weights(dtype=np.float32, seed=0):
    """By name; rows(name) says along which axis the output channels lie."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    return {
        "conv.w": normal(32, 3, 3, 3),
        "conv.b": normal(32),
        "grouped.w": normal(32, 8, 3, 3),
        "gemm.w": normal(48, 32),
        "gemm.b": normal(1, 48),
        "mm.w": normal(48, 40),
        "mm.b": normal(40),
        "turned.w": normal(16, 40),
        "norm.scale": rng.uniform(0.5, 2, 32).astype(dtype),
        "norm.bias": normal(32),
        "norm.mean": normal(32),
        "norm.var": rng.uniform(0.5, 2, 32).astype(dtype),
    }


LAYERS = {"conv.w": 0, "grouped.w": 0, "gemm.w": 0, "mm.w": 1, "turned.w": 0}  # the axis of output channels


def network(arrays, dtype=np.float32, opset=18, constants=False):
    """x [batch, 3, 9, 8] -> Conv, BatchNorm, grouped Conv, Gemm, MatMul + Add, MatMul by W transposed."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "conv.w", "conv.b"], ["c1"], "conv", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c1", *[f"norm.{n}" for n in ("scale", "bias", "mean", "var")]], ["c2"]),
        node("Relu", ["c2"], ["c3"]),
        node("Conv", ["c3", "grouped.w"], ["c4"], "grouped", group=4, auto_pad="SAME_LOWER"),
        node("GlobalAveragePool", ["c4"], ["p1"]),
        node("Flatten", ["p1"], ["p2"]),
        node("Gemm", ["p2", "gemm.w", "gemm.b"], ["g1"], "gemm", transB=1, alpha=0.5, beta=2.0),
        node("Relu", ["g1"], ["g2"]),
        node("MatMul", ["g2", "mm.w"], ["m1"], "mm"),
        node("Add", ["mm.b", "m1"], ["m2"]),
        node("Relu", ["m2"], ["m3"]),
        node("Transpose", ["turned.w"], ["turned"], perm=[1, 0]),
        node("MatMul", ["m3", "turned"], ["y"], "turned"),
    ]
    tensors = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    if constants:
        nodes = [node("Constant", [], [t.name], value=t) for t in tensors] + nodes
        tensors = []
    return model(nodes, {"x": ["batch", 3, 9, 8]}, {"y": ["batch", 16]}, tensors, dtype, opset)


def model(nodes, inputs, outputs, tensors=(), dtype=np.float32, opset=18, ir_version=8):
    def values(shapes):
        return [helper.make_tensor_value_info(n, TYPES[dtype], s) for n, s in shapes.items()]

    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs), list(tensors))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(made)
    return made


def one_layer(node, arrays, x_shape, y_rank, **how):
    """A model of one node that reads x."""
    tensors = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    return model([node], {"x": x_shape}, {"y": [None] * y_rank}, tensors, **how)


def example(dtype=np.float32, batch=5):
    return np.random.default_rng(9).normal(size=(batch, 3, 9, 8)).astype(dtype)
