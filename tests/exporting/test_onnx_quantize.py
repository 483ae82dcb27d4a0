"""An ONNX file with quantised weights computes what the source computes with those weights."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from networks import run_ort
from onnx import TensorProto, helper, numpy_helper
from onnx_models import LAYERS, example, model, network, one_layer, weights

from hybridkit.errors import FileError, GateError, HybridkitError, UsageError
from hybridkit.exporting import files
from hybridkit.exporting.onnx_quantize import quantize_onnx, rounding
from hybridkit.exporting.onnx_quantize.rounding import make_rounding
from hybridkit.runtime.session import session


def saved(proto, folder, name="source.onnx", **how):
    onnx.save(proto, folder / name, **how)
    return folder / name


def dequantized(arrays, name, options=None):
    """The weights of a network with those of its layers quantised."""
    quantizer = make_rounding(name, options)

    def rounded(array, axis):
        matrix = array.T if axis else array.reshape(len(array), -1)
        found = quantizer.quantize(np.ascontiguousarray(matrix, np.float32)).dequantize()
        return (found.T if axis else found.reshape(array.shape)).astype(np.float32)

    return {n: rounded(a, LAYERS[n]) if n in LAYERS else a.astype(np.float32) for n, a in arrays.items()}


def operators(path):
    return [f"{n.domain}:{n.op_type}".lstrip(":") for n in onnx.load(path).graph.node]


QUANTIZERS = [
    ("ternary-mse", {}),
    ("binary", {}),
    ("nbit", {"bits": 4, "group_size": 16}),
    ("nbit", {"bits": 8, "group_size": 0}),
    ("nbit", {"bits": 2, "group_size": 10}),
]


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize(("name", "options"), QUANTIZERS)
def test_float_activations(name, options, opset, constants, tmp_path):
    arrays = weights()
    source = saved(network(arrays, opset=opset, constants=constants), tmp_path)
    report = quantize_onnx(source, tmp_path / "packed.onnx", quantizer=name, options=options)
    twin = saved(network(dequantized(arrays, name, options)), tmp_path, "twin.onnx")
    want = run_ort(twin, example())
    np.testing.assert_allclose(run_ort(tmp_path / "packed.onnx", example()), want, rtol=1e-3, atol=1e-3)
    assert [layer.name for layer in report.layers] == ["conv", "grouped", "gemm", "mm", "turned"]
    assert {layer.quantizer for layer in report.layers} == {name}
    assert report.bytes_after == (tmp_path / "packed.onnx").stat().st_size
    assert report.bytes_before == source.stat().st_size
    unpacked = (
        {"MatMul", "Transpose"} if options.get("group_size") == 10 else set()
    )  # no block of MatMulNBits
    assert not (set(operators(tmp_path / "packed.onnx")) - unpacked) & {
        "MatMul",
        "Gemm",
        "BatchNormalization",
        "Transpose",
    }
    assert report.opset == 18


@pytest.mark.parametrize("name", ["ternary-mse", "ternary-absmean", "binary"])
def test_int8_activations(name, tmp_path):
    arrays = weights()
    source = saved(network(arrays), tmp_path)
    quantize_onnx(source, tmp_path / "packed.onnx", quantizer=name, activations="int8")
    want = run_ort(saved(network(dequantized(arrays, name)), tmp_path, "twin.onnx"), example())
    got = run_ort(tmp_path / "packed.onnx", example())
    assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)
    assert all("Int8" in op for op in operators(tmp_path / "packed.onnx") if op.startswith("hybridkit"))


def test_n_bit_products_are_stock_nodes(tmp_path):
    arrays = weights()
    source = saved(network(arrays), tmp_path)
    quantize_onnx(source, tmp_path / "packed.onnx", quantizer="nbit", activations="int8")
    used = operators(tmp_path / "packed.onnx")
    assert used.count("com.microsoft:MatMulNBits") == 3
    assert used.count("hybridkit:NBit4Unpack") == used.count("Conv") == 2
    nodes = onnx.load(tmp_path / "packed.onnx").graph.node
    levels = {a.i for n in nodes for a in n.attribute if a.name == "accuracy_level"}
    assert levels == {4}


def test_half_precision_weights_keep_their_type(tmp_path):
    arrays = weights(np.float16)
    source = saved(network(arrays, np.float16), tmp_path)
    report = quantize_onnx(source, tmp_path / "packed.onnx")
    assert session(tmp_path / "packed.onnx").get_inputs()[0].type == "tensor(float16)"
    got = run_ort(tmp_path / "packed.onnx", example(np.float16))
    assert got.dtype == np.float16
    want = run_ort(saved(network(dequantized(arrays, "ternary-mse")), tmp_path, "twin.onnx"), example())
    assert np.linalg.norm(got - want) < 0.02 * np.linalg.norm(want)
    assert {layer.bits for layer in report.layers} == {np.log2(3)}
    assert report.layers[0].bytes_before == arrays["conv.w"].nbytes


def test_external_data_in_and_out(tmp_path, monkeypatch):
    arrays = weights()
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    source = saved(
        network(arrays), here, save_as_external_data=True, location="weights.bin", size_threshold=64
    )
    report = quantize_onnx(source, there / "packed.onnx", exclude=["mm"])
    assert report.bytes_before == source.stat().st_size + (here / "weights.bin").stat().st_size
    assert [p.name for p in there.iterdir()] == ["packed.onnx"], "what stays is no longer outside"
    want = run_ort(there / "packed.onnx", example())
    monkeypatch.setattr(files, "EXTERNAL_BYTES", 500)
    monkeypatch.setattr(files, "_SMALL", 100)
    report = quantize_onnx(source, there / "outside.onnx", exclude=["mm"])
    outside = [p for p in there.iterdir() if p.suffix == ".data"]
    assert len(outside) == 1
    assert report.bytes_after == (there / "outside.onnx").stat().st_size + outside[0].stat().st_size
    np.testing.assert_array_equal(run_ort(there / "outside.onnx", example()), want)


def test_layers_by_name(tmp_path):
    source = saved(network(weights()), tmp_path)
    report = quantize_onnx(source, tmp_path / "p.onnx", include=["*m*", "conv"], exclude=["gemm"])
    chosen = {layer.name: layer.quantizer for layer in report.layers}
    assert chosen == {
        "conv": "ternary-mse",
        "grouped": None,
        "gemm": None,
        "mm": "ternary-mse",
        "turned": None,
    }
    assert {layer.reason for layer in report.layers if not layer.quantizer} == {"not chosen by name"}
    with pytest.raises(
        UsageError, match=r"no layer's name fits 'con'; layers: conv, grouped, gemm, mm, turned"
    ):
        quantize_onnx(source, tmp_path / "q.onnx", exclude=["con"])
    with pytest.raises(HybridkitError, match="no layer was quantised; not chosen by name"):
        quantize_onnx(source, tmp_path / "q.onnx", exclude=["*"])


def test_layers_by_error(tmp_path):
    arrays = weights()
    arrays["mm.w"] = np.sign(arrays["mm.w"]) * np.float32(0.3)  # ternary already
    source = saved(network(arrays), tmp_path)
    report = quantize_onnx(source, tmp_path / "p.onnx", max_error=0.2)
    found = {layer.name: layer for layer in report.layers}
    assert found["mm"].error == pytest.approx(0, abs=1e-6)
    assert [name for name, layer in found.items() if layer.quantizer] == ["mm"]
    assert found["conv"].reason == "error above 0.2"
    assert 0.2 < found["conv"].error < 0.6
    report = quantize_onnx(source, tmp_path / "p.onnx", max_error=0.07, more_bits=True)
    bits = {layer.name: layer.bits for layer in report.layers}
    assert bits["mm"] == np.log2(3)
    assert set(bits.values()) == {np.log2(3), 8.0}
    assert all(layer.error <= 0.08 for layer in report.layers)
    report = quantize_onnx(source, tmp_path / "p.onnx", max_error=0.15, more_bits=True)
    assert {layer.bits for layer in report.layers} == {np.log2(3), 4.0}
    with pytest.raises(UsageError, match="say it with --max-error"):
        quantize_onnx(source, tmp_path / "p.onnx", more_bits=True)


def test_the_error_on_given_inputs_is_that_of_outputs(tmp_path):
    """Inputs that are zero where the weight is bad hide its error."""
    weight = np.zeros((64, 32), np.float32)
    weight[:32] = np.sign(np.random.default_rng(0).normal(size=(32, 32)))
    weight[32:] = np.random.default_rng(1).normal(size=(32, 32)) * 0.3
    source = saved(
        one_layer(helper.make_node("MatMul", ["x", "w"], ["y"], "only"), {"w": weight}, [None, 64], 2),
        tmp_path,
    )
    x = np.random.default_rng(2).normal(size=(7, 64)).astype(np.float32)
    x[:, 32:] = 0
    by_weight = quantize_onnx(source, tmp_path / "p.onnx").layers[0].error
    report = quantize_onnx(source, tmp_path / "p.onnx", inputs={"x": x})
    assert report.measured == "outputs"
    assert report.layers[0].error < 0.5 * by_weight
    kept = x[1::2]  # the others are what codes are fitted to
    got, want = run_ort(tmp_path / "p.onnx", kept), run_ort(source, kept)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert report.layers[0].error == pytest.approx(error, rel=1e-3, abs=1e-5)
    got, want = run_ort(tmp_path / "p.onnx", x), run_ort(source, x)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert report.comparison.inputs == "given"
    assert report.comparison.outputs[0].relative_error == pytest.approx(error, rel=1e-3, abs=1e-5)
    cosine = (got * want).sum() / np.linalg.norm(got) / np.linalg.norm(want)
    assert report.comparison.outputs[0].cosine == pytest.approx(cosine, rel=1e-4)


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_the_output_error_of_each_layer(activations, tmp_path):
    source = saved(network(weights()), tmp_path)
    report = quantize_onnx(source, tmp_path / "p.onnx", activations=activations, inputs={"x": example()})
    errors = {layer.name: layer.error for layer in report.layers}
    first = one_layer(
        helper.make_node("Conv", ["x", "w"], ["y"], "c", pads=[1] * 4),
        {"w": weights()["conv.w"]},
        [None, 3, 9, 8],
        4,
    )
    alone = {"activations": activations, "inputs": {"x": example()}}
    quantize_onnx(saved(first, tmp_path, "c.onnx"), tmp_path / "cp.onnx", **alone)
    kept = example()[1::2]
    got, want = run_ort(tmp_path / "cp.onnx", kept), run_ort(tmp_path / "c.onnx", kept)
    assert errors["conv"] == pytest.approx(np.linalg.norm(got - want) / np.linalg.norm(want), rel=1e-3)
    assert all(0.05 < error < 0.8 for error in errors.values())


@pytest.mark.parametrize(("name", "options"), QUANTIZERS)
@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
def test_codes_are_fitted_to_inputs(kind, name, options, tmp_path):
    """On inputs that it has not seen; what is not fitted to them rounds."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 40)) * 3.0 ** -np.arange(6)[:, None]
    rows = (rng.normal(size=(900, 6)) @ mixing + 0.05 * rng.normal(size=(900, 40))).astype(np.float32)
    if kind == "MatMul":
        layer = helper.make_node("MatMul", ["x", "w"], ["y"], "only")
        weight, x, shape, rank = rng.normal(size=(40, 64)), rows, [None, 40], 2
    else:
        layer = helper.make_node("Conv", ["x", "w"], ["y"], "only", group=2)
        weight, x = rng.normal(size=(64, 20, 1, 1)), rows.reshape(100, 9, 1, 40).transpose(0, 3, 1, 2)
        shape, rank = [None, 40, 9, 1], 4
    source = saved(one_layer(layer, {"w": weight.astype(np.float32)}, shape, rank), tmp_path)
    how = {"quantizer": name, "options": options}
    quantize_onnx(source, tmp_path / "rounded.onnx", **how)
    quantize_onnx(source, tmp_path / "fitted.onnx", inputs={"x": np.ascontiguousarray(x[:-20])}, **how)
    fresh = np.ascontiguousarray(x[-20:])
    want = run_ort(source, fresh)
    errors = [
        np.linalg.norm(run_ort(tmp_path / f"{made}.onnx", fresh) - want) for made in ("rounded", "fitted")
    ]
    assert errors[1] < 0.8 * errors[0]


def test_metadata_of_the_source_stays(tmp_path):
    proto = network(weights())
    helper.set_model_props(proto, {"classes": "cat,dog"})
    proto.producer_name = "somebody"
    quantize_onnx(saved(proto, tmp_path), tmp_path / "p.onnx", exclude=["turned"])
    written = onnx.load(tmp_path / "p.onnx")
    properties = {p.key: p.value for p in written.metadata_props}
    assert properties["classes"] == "cat,dog"
    assert written.producer_name == "somebody"
    layers = json.loads(properties["hybridkit.layers"])
    assert set(layers) == {"conv", "grouped", "gemm", "mm"}
    assert layers["gemm"] == {
        "kind": "Gemm",
        "shape": [48, 32],
        "bits": 1.585,
        "quantizer": "ternary-mse",
        "activations": "float",
    }


def test_layers_in_the_branches_of_an_if(tmp_path):
    arrays = {
        n: np.random.default_rng(i).normal(size=(128, 128)).astype(np.float32) for i, n in enumerate("ab")
    }

    def branch(name):
        tensor = numpy_helper.from_array(arrays[name], f"{name}.w")
        node = helper.make_node("MatMul", ["x", f"{name}.w"], [f"{name}.y"], name)
        y = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, [None, 128])
        return helper.make_graph([node], name, [], [y], [tensor])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["positive"], to=TensorProto.BOOL),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    source = saved(model(nodes, {"x": ["n", 128]}, {"y": ["n", 128]}), tmp_path)
    report = quantize_onnx(source, tmp_path / "p.onnx", quantizer="nbit", options={"bits": 8})
    assert {layer.name: layer.quantizer for layer in report.layers} == {"a": "nbit", "b": "nbit"}
    report = quantize_onnx(source, tmp_path / "p.onnx", inputs={"x": np.ones((2, 128), np.float32)})
    for x in (np.ones((2, 128), np.float32), np.zeros((2, 128), np.float32)):
        got, want = run_ort(tmp_path / "p.onnx", x), run_ort(source, x)
        assert np.linalg.norm(got - want) <= 0.6 * np.linalg.norm(want)
    assert report.bytes_after < 0.9 * report.bytes_before


def test_a_difference_between_native_and_portable_leaves_the_old_file(tmp_path, monkeypatch):
    import hybridkit.exporting.onnx_quantize as package

    source = saved(network(weights()), tmp_path)
    quantize_onnx(source, tmp_path / "p.onnx")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def differ(path, feed):
        raise GateError(f"{path.name} was not written")

    monkeypatch.setattr(package, "check_native", differ)
    with pytest.raises(GateError):
        quantize_onnx(source, tmp_path / "p.onnx", quantizer="binary")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_large_weight_is_quantised_in_blocks_of_rows(tmp_path, monkeypatch):
    source = saved(network(weights()), tmp_path)
    quantize_onnx(source, tmp_path / "whole.onnx", quantizer="nbit")
    monkeypatch.setattr(rounding, "_BLOCK", 100)
    quantize_onnx(source, tmp_path / "parts.onnx", quantizer="nbit")
    assert (tmp_path / "whole.onnx").read_bytes() == (tmp_path / "parts.onnx").read_bytes()


def test_what_cannot_be_done_is_said_and_leaves_no_file(tmp_path):
    source = saved(network(weights()), tmp_path)
    other = saved(
        model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]}), tmp_path, "relu.onnx"
    )
    (tmp_path / "text.onnx").write_text("no model at all")
    out = tmp_path / "p.onnx"
    mistakes = [
        (FileError, "there is no model file", tmp_path / "none.onnx", out, {}),
        (FileError, "not an ONNX model", tmp_path / "text.onnx", out, {}),
        (HybridkitError, "no MatMul, Gemm or Conv with a constant weight", other, out, {}),
        (UsageError, "its name ends in .onnx", source, tmp_path / "p.bin", {}),
        (UsageError, "is the source", source, source, {}),
        (FileError, "there is no folder", source, tmp_path / "no" / "p.onnx", {}),
        (UsageError, "no activation mode is called 'int4'", source, out, {"activations": "int4"}),
        (UsageError, "above 0, not -1", source, out, {"max_error": -1.0}),
        (UsageError, "has the inputs x, the file of inputs has z", source, out, {"inputs": {"z": example()}}),
        (UsageError, "does not run on these inputs", source, out, {"inputs": {"x": example()[0]}}),
    ]
    before = sorted(p.name for p in tmp_path.iterdir())
    for kind, message, given, target, how in mistakes:
        with pytest.raises(kind, match=message) as caught:
            quantize_onnx(given, target, **how)
        assert "\n" not in str(caught.value)
        assert sorted(p.name for p in tmp_path.iterdir()) == before
