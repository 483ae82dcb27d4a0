"""Which nodes are layers, and that each variety of one computes the same when its weight is exact."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import run_ort
from onnx import TensorProto, helper, numpy_helper
from onnx_models import model, one_layer

from hybridkit.errors import HybridkitError
from hybridkit.exporting.door import admit
from hybridkit.exporting.onnx_quantize import loading, quantize_onnx
from hybridkit.exporting.onnx_quantize.products import Product, Unfit, find

node = helper.make_node


def ternary(*shape, seed=0):
    """A weight that ternary-mse represents exactly: one magnitude per output channel, on either axis."""
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float32)


def same_after_quantizing(proto, folder, *inputs):
    onnx.save(proto, folder / "source.onnx")
    quantize_onnx(folder / "source.onnx", folder / "packed.onnx")
    want = run_ort(folder / "source.onnx", *inputs)
    np.testing.assert_allclose(run_ort(folder / "packed.onnx", *inputs), want, rtol=1e-4, atol=1e-4)


def random(*shape):
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


gemms = [
    {},
    {"transB": 1},
    {"alpha": 0.25, "beta": 3.0},
    {"transB": 1, "alpha": -2.0, "beta": 0.0},
]


@pytest.mark.parametrize("attributes", gemms)
@pytest.mark.parametrize("c_shape", [None, (), (1,), (40,), (1, 40), (6, 40), (6, 1)])
def test_gemm(attributes, c_shape, tmp_path):
    arrays = {"w": ternary(40, 64) if "transB" in attributes else ternary(64, 40)}
    names = ["x", "w"]
    if c_shape is not None:
        arrays["c"] = random(*c_shape)
        names.append("c")
    proto = one_layer(node("Gemm", names, ["y"], "g", **attributes), arrays, ["n", 64], 2)
    same_after_quantizing(proto, tmp_path, random(6, 64))


def test_gemm_whose_addend_is_no_constant(tmp_path):
    tensors = [numpy_helper.from_array(ternary(64, 40), "w")]
    nodes = [node("Gemm", ["x", "w", "z"], ["y"], "g", beta=0.5)]
    proto = model(nodes, {"x": ["n", 64], "z": ["n", 40]}, {"y": ["n", 40]}, tensors)
    same_after_quantizing(proto, tmp_path, random(3, 64), random(3, 40))
    chained = [*nodes, node("Gemm", ["y", "v", "x"], ["u"], "h")]
    tensors.append(numpy_helper.from_array(ternary(40, 64, seed=1), "v"))
    proto = model(chained, {"x": ["n", 64], "z": ["n", 40]}, {"u": ["n", 64]}, tensors)
    same_after_quantizing(proto, tmp_path, random(3, 64), random(3, 40))


@pytest.mark.parametrize("b_shape", [(), (1,), (40,), (1, 40), (1, 1, 40), (5, 40), (5, 1)])
@pytest.mark.parametrize("x_shape", [(64,), (5, 64), (2, 5, 64)])
def test_matmul_with_something_added(x_shape, b_shape, tmp_path):
    """Only a row is taken into the bias; other shapes may add dimensions to the output."""
    arrays = {"w": ternary(64, 40), "b": random(*b_shape)}
    nodes = [node("MatMul", ["x", "w"], ["m"], "m"), node("Add", ["m", "b"], ["y"])]
    rank = max(len(x_shape), len(b_shape))
    tensors = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    proto = model(nodes, {"x": list(x_shape)}, {"y": [None] * rank}, tensors)
    same_after_quantizing(proto, tmp_path, random(*x_shape))
    adds = [n.op_type for n in onnx.load(tmp_path / "packed.onnx").graph.node].count("Add")
    assert adds == (0 if len(b_shape) <= 1 else 1)


def test_a_product_that_is_read_twice_keeps_its_add(tmp_path):
    tensors = [numpy_helper.from_array(ternary(64, 40), "w"), numpy_helper.from_array(random(40), "b")]
    nodes = [
        node("MatMul", ["x", "w"], ["m"], "m"),
        node("Add", ["m", "b"], ["a"]),
        node("Mul", ["a", "m"], ["y"]),
    ]
    same_after_quantizing(model(nodes, {"x": ["n", 64]}, {"y": ["n", 40]}, tensors), tmp_path, random(3, 64))


@settings(max_examples=12, deadline=None)
@given(
    dims=st.integers(1, 3),
    group=st.sampled_from([1, 2]),
    auto_pad=st.sampled_from([None, "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]),
    bias=st.booleans(),
    data=st.data(),
)
def test_convolutions(tmp_path_factory, dims, group, auto_pad, bias, data):
    def draw(low, high, count=dims):
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel = draw(1, 4)
    same = (auto_pad or "").startswith("SAME")
    geometry = {"dilations": draw(1, 1 if same else 2), "group": group}  # ONNX Runtime has no more
    if auto_pad is not None:
        geometry["auto_pad"] = auto_pad
    if auto_pad in (None, "NOTSET"):
        geometry["pads"] = draw(0, 2, 2 * dims)
    if not same:
        geometry["strides"] = draw(1, 2)
    arrays = {"w": ternary(32, 8, *kernel, seed=dims)} | ({"b": random(32)} if bias else {})
    proto = one_layer(
        node("Conv", ["x", *arrays], ["y"], "c", **geometry), arrays, [None, 8 * group, *[9] * dims], dims + 2
    )
    same_after_quantizing(proto, tmp_path_factory.mktemp("conv"), random(2, 8 * group, *[9] * dims))


def found(nodes, inputs, tensors, dtype=np.float32):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a, dtype), n) for n, a in tensors.items()],
    )
    return find(ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])))


@pytest.mark.parametrize(
    ("nodes", "arrays", "reason"),
    [
        ([node("MatMul", ["w", "x"], ["y"])], {"w": ternary(4, 4)}, "its weight is the left factor"),
        ([node("MatMul", ["x", "w"], ["y"])], {"w": ternary(2, 4, 4)}, "a weight with 3 dimensions"),
        (
            [node("Conv", ["x", "w"], ["y"], group=2**31 - 1)],
            {"w": ternary(4, 4, 3)},
            "2147483647 groups of 4",
        ),
        ([node("Conv", ["x", "w"], ["y"], group=3)], {"w": ternary(4, 4, 3)}, "3 groups of 4 channels"),
        ([node("Gemm", ["x", "w"], ["y"], transA=1)], {"w": ternary(4, 4)}, "a transposed input"),
        ([node("MatMul", ["x", "w"], ["y"])], {"w": np.full((4, 4), np.nan)}, "its weight holds infinities"),
        (
            [node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])],
            {"w": ternary(4, 4, 3, 3)},
            "padding that depends on the size of the input",
        ),
        (
            [node("Conv", ["x", "w", "x"], ["y"])],
            {"w": ternary(4, 4, 3, 3)},
            "its bias is no constant",
        ),
        (
            [node("Gather", ["w", "i"], ["x2"]), node("MatMul", ["x2", "w"], ["y"])],
            {"w": ternary(4, 4)},
            "shares its weight with Gather",
        ),
        (
            [
                node("Gather", ["w", "i"], ["x2"]),
                node("Transpose", ["w"], ["t"]),
                node("MatMul", ["x2", "t"], ["y"]),
            ],
            {"w": ternary(4, 4)},
            "shares its weight with Gather",
        ),
    ],
)
def test_layers_that_stay(nodes, arrays, reason):
    (layer,) = found(nodes, {"x": None, "i": None}, arrays)
    assert isinstance(layer, Unfit)
    assert layer.reason.startswith(reason)


def test_large_weights_of_other_operators_are_told():
    nodes = [
        node("Gather", ["table", "i"], ["x2"], "words"),
        node("Add", ["x2", "small"], ["x3"]),
        node("Transpose", ["table"], ["t"]),
        node("MatMul", ["x3", "w"], ["y"]),
    ]
    arrays = {"table": ternary(64, 16), "small": ternary(4, 16), "w": ternary(16, 16)}
    first, second = found(nodes, {"x": None, "i": None}, arrays)
    assert (first.name, first.reason, first.weight.shape) == ("words", "Gather is not quantised", (64, 16))
    assert isinstance(second, Product)


def test_double_precision_stays():
    (layer,) = found([node("MatMul", ["x", "w"], ["y"])], {"x": None}, {"w": ternary(4, 4)}, np.float64)
    assert layer.reason == "float64 weights"


def test_what_is_no_layer():
    """Two activations, two constants, another domain's operator of that name, a variable weight."""
    nodes = [
        node("MatMul", ["x", "z"], ["a"]),
        node("MatMul", ["w", "w"], ["b"]),
        node("MatMul", ["x", "w"], ["c"], domain="somebody"),
        node("Conv", ["x", "z"], ["d"]),
        node("Relu", ["w"], ["e"]),
    ]
    assert found(nodes, {"x": None, "z": None}, {"w": ternary(4, 4)}) == []


def test_names_are_unique():
    nodes = [
        node("MatMul", ["x", "w"], ["a"], "same"),
        node("MatMul", ["a", "w"], ["b"], "same"),
        node("MatMul", ["b", "w"], ["c"]),
    ]
    layers = found(nodes, {"x": None}, {"w": ternary(4, 4)})
    assert [layer.name for layer in layers] == ["same", "same.2", "c"]
    assert all(isinstance(layer, Product) for layer in layers)


def test_weights_that_old_files_list_as_inputs(tmp_path):
    proto = one_layer(node("MatMul", ["x", "w"], ["y"], "m"), {"w": ternary(64, 40)}, ["n", 64], 2, opset=9)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 40]))
    proto.ir_version = 3
    onnx.save(proto, tmp_path / "source.onnx")
    report = quantize_onnx(tmp_path / "source.onnx", tmp_path / "packed.onnx")
    assert report.opset == 18
    written = onnx.load(tmp_path / "packed.onnx")
    assert [v.name for v in written.graph.input] == ["x"]
    assert written.ir_version >= 8
    want = random(3, 64) @ numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_allclose(run_ort(tmp_path / "packed.onnx", random(3, 64)), want, rtol=1e-4, atol=1e-4)


def test_an_opset_that_cannot_be_raised_is_said(tmp_path, monkeypatch):
    import onnxscript.version_converter

    def fails(*_, **__):
        raise RuntimeError("no adapter for Upsample\nfrom 9")

    proto = one_layer(node("MatMul", ["x", "w"], ["y"], "m"), {"w": ternary(64, 40)}, ["n", 64], 2, opset=13)
    onnx.save(proto, tmp_path / "source.onnx")
    monkeypatch.setattr(onnxscript.version_converter, "ConvertVersionPass", fails)
    with pytest.raises(
        HybridkitError, match=r"has opset 13, our operators' bodies need 18.*no adapter for Upsample"
    ):
        quantize_onnx(tmp_path / "source.onnx", tmp_path / "packed.onnx")
    report = quantize_onnx(tmp_path / "source.onnx", tmp_path / "packed.onnx", quantizer="nbit")
    assert report.opset == 13, "stock nodes need none"
    assert loading.load(admit(tmp_path / "packed.onnx")).graph.opset_imports[""] == 13
