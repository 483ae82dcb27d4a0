"""Which codes of a graph become tiles, and that tiles mean the same weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hybridkit.exporting.graph import packed_nodes
from hybridkit.exporting.layout import make_row_major, make_tiled, worth_tiling
from hybridkit.packing.codecs import codec

few = settings(max_examples=20, deadline=None)


def product(codes, name, K, N, kind="MatMul", **attributes):
    stem = f"Ternary{kind}Int8"
    names = ["x", codes, "scale", "bias"]
    return helper.make_node(stem, names, [name], domain="hybridkit", K=K, N=N, layout=0, **attributes)


def convolution(codes, name, K, N, group, kernel):
    geometry = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": group}
    return product(codes, name, K, N, "Conv", kernel_shape=list(kernel), **geometry)


def model_of(nodes, **matrices):
    """`nodes` with the given integer matrices [N, K] as packed initializers."""
    arrays = {n: codec("two-bit").pack(m) for n, m in matrices.items()}
    arrays |= {"scale": np.ones(1, np.float32), "bias": np.zeros(1, np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("hybridkit", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))


def matrix(N, K, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, (N, K)).astype(np.int8)


def layouts(model):
    return [layer.layout for layer in packed_nodes(model)]


@few
@given(
    rows=st.sampled_from([16, 30, 32, 64]),
    channels=st.integers(1, 40),
    group=st.integers(1, 3),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 4)]),
    seed=st.integers(0, 2**31),
)
def test_tiled_and_back_is_the_same_matrix(rows, channels, group, kernel, seed):
    N, K = rows * group, channels * kernel[0] * kernel[1]
    codes = matrix(N, K, seed)
    nodes = [convolution("c.codes", "y", K, N, group, kernel)]
    nodes += [product("m.codes", "z", K, N)]
    model = model_of(nodes, **{"c.codes": codes, "m.codes": codes})
    make_tiled(model)
    conv, matmul = packed_nodes(model)
    assert conv.layout == (2 if worth_tiling(N, K, 2, group) else 0)
    assert matmul.layout == (1 if worth_tiling(N, K, 2) else 0)
    assert conv.codes.shape == ir.Shape(conv.codes.const_value.shape)
    make_row_major(model)
    assert layouts(model) == [0, 0]
    for layer in packed_nodes(model):
        np.testing.assert_array_equal(layer.integers(), codes)


@pytest.mark.parametrize(
    ("N", "K", "bits", "group", "worth"),
    [
        (64, 64, 2, 1, True),
        (512, 777, 2, 1, True),
        (10, 512, 2, 1, False),  # 16 rows for 10
        (17, 512, 2, 1, False),
        (128, 9, 2, 1, False),  # 16 columns for 12
        (128, 64, 1, 1, True),
        (128, 48, 1, 1, False),  # 64 columns for 48
        (64, 576, 2, 4, True),
        (64, 9, 2, 64, False),  # depthwise: a tile for each row
    ],
)
def test_padding_above_an_eighth_is_not_worth_it(N, K, bits, group, worth):
    assert worth_tiling(N, K, bits, group) is worth


def test_codes_that_a_stock_operator_reads_stay_rows():
    nodes = [product("w.codes", "y", 32, 32), helper.make_node("Gather", ["w.codes", "x"], ["z"])]
    model = model_of(nodes, **{"w.codes": matrix(32, 32)})
    make_tiled(model)
    assert layouts(model) == [0]


def test_rows_are_gathered_out_of_the_tiles_of_a_product():
    rows = helper.make_node(
        "TernaryGather", ["x", "w.codes"], ["z"], domain="hybridkit", K=32, N=32, layout=0
    )
    codes = matrix(32, 32)
    model = model_of([rows, product("w.codes", "y", 32, 32)], **{"w.codes": codes})
    gather = model.graph.node(0)
    make_tiled(model)
    assert layouts(model) == [1] == [gather.attributes["layout"].as_int()]
    make_row_major(model)
    assert layouts(model) == [0] == [gather.attributes["layout"].as_int()]
    np.testing.assert_array_equal(next(packed_nodes(model)).integers(), codes)


def test_a_weight_of_two_layers_is_tiled_once():
    nodes = [product("w.codes", "y", 32, 32), product("w.codes", "z", 32, 32)]
    model = model_of(nodes, **{"w.codes": matrix(32, 32)})
    make_tiled(model)
    assert layouts(model) == [1, 1]
    assert model.graph.initializers["w.codes"].shape == ir.Shape((2, 2, 16, 4))
    make_tiled(model)
    assert model.graph.initializers["w.codes"].shape == ir.Shape((2, 2, 16, 4)), "not twice"


def test_a_weight_that_two_kinds_of_product_share_stays_rows():
    nodes = [product("w.codes", "y", 32, 32), convolution("w.codes", "z", 32, 32, 1, (2, 2))]
    model = model_of(nodes, **{"w.codes": matrix(32, 32)})
    make_tiled(model)
    assert layouts(model) == [0, 0]
