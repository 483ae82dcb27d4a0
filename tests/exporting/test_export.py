"""Exported files: what is in them, and that they compute what the network computes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from networks import ConvNet, TinyTransformer, mlp, quantized, run_ort
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from hybridkit import __version__
from hybridkit.errors import HybridkitError, UsageError
from hybridkit.exporting import Validation, export, target_for
from hybridkit.packing.model import PackedModel
from hybridkit.runtime.modules import load_packed

FAKE_QUANT = {"FakeQuant", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def output(model, *inputs):
    with torch.no_grad():
        return model(*inputs).numpy()


def operators(proto):
    return Counter((n.domain, n.op_type) for n in proto.graph.node)


def test_mlp_has_one_operator_per_layer_and_computes_the_same(mlp_network, mlp_file, mlp_inputs):
    path, report = mlp_file
    proto = onnx.load(path)
    assert operators(proto) == {
        ("hybridkit", "TernaryMatMulInt8"): 2,
        ("", "Relu"): 2,
        ("", "Gemm"): 1,
    }
    assert [f.name for f in proto.functions] == ["TernaryMatMulInt8"]
    for batch in (1, 3, 64):
        x = mlp_inputs[:batch]
        want = output(mlp_network[0], x)
        evaluator = ReferenceEvaluator(proto)
        for got in (
            run_ort(path, x),
            run_ort(path, x, inline=False),
            evaluator.run(None, {"x": x.numpy()})[0],
        ):
            np.testing.assert_allclose(got, want, atol=1e-5)
    assert report.verification.samples == 64
    assert report.verification.top1_misses == 0


def test_mlp_is_small(mlp_file):
    path, report = mlp_file
    proto = onnx.load(path)
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    codes = [a for a in arrays.values() if a.dtype == np.uint8]
    assert sorted(a.shape for a in codes) == [(4, 4, 16, 4), (64, 9)], "tiles where they cost little"
    weights = 64 * 9 + 64 * 16 + 4 * (10 * 64 + 10) + 4 * 4 * 64
    assert path.stat().st_size == report.file_bytes < weights + 4500
    assert report.fp32_bytes > 4 * (33 * 64 + 64 * 64 + 64 * 10)
    assert report.ratio == report.fp32_bytes / report.file_bytes
    assert 2 < report.bits_per_weight < 3.5
    text = path.read_bytes()
    assert b"site-packages" not in text
    assert b"pkg.torch" not in text


def test_metadata(mlp_file, mlp_network):
    properties = {p.key: p.value for p in onnx.load(mlp_file[0]).metadata_props}
    assert properties["hybridkit.version"] == __version__
    assert properties["hybridkit.commit"] == "abc"
    assert json.loads(properties["hybridkit.metrics"]) == {"accuracy": 0.5}
    layers = json.loads(properties["hybridkit.layers"])
    assert set(layers) == set(mlp_network[1].layers) == {"0", "3"}
    assert layers["0"] == {
        "kind": "linear",
        "shape": [64, 33],
        "bits": 1.585,
        "quantizer": "ternary-absmean",
        "activations": "int8",
        "layout": 0,
    }
    assert layers["3"]["layout"] == 1


def test_the_file_needs_onnxruntime_and_numpy_only(mlp_file, mlp_network, mlp_inputs, tmp_path):
    np.savez(tmp_path / "io.npz", x=mlp_inputs.numpy(), y=output(mlp_network[0], mlp_inputs))
    script = f"""
import sys
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "hybridkit"):
    sys.modules[name] = None
import numpy, onnxruntime
io = numpy.load({str(tmp_path / "io.npz")!r})
session = onnxruntime.InferenceSession({str(mlp_file[0])!r}, providers=["CPUExecutionProvider"])
print(abs(session.run(None, {{"x": io["x"]}})[0] - io["y"]).max() < 1e-5)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_convolutions(activations, tmp_path):
    torch.manual_seed(3)
    x = torch.randn(4, 2, 14, 12)
    overrides = {"binary": "binary", "nbit": {"quantizer": "nbit", "bits": 4}}
    model, packed = quantized(ConvNet(), x, activations=activations, overrides=overrides)
    path = tmp_path / "conv.onnx"
    report = export(
        model, packed, path, example_inputs=[x[:1]], dynamic_axes=[{0: "batch", 2: "height", 3: "width"}]
    )
    proto = onnx.load(path)
    found = operators(proto)
    mode = activations.capitalize()
    assert found["hybridkit", f"TernaryConv{mode}"] == 3
    assert found["hybridkit", f"BinaryConv{mode}"] == 1
    assert found["hybridkit", "NBit4Unpack"] == 1
    assert not FAKE_QUANT & {name for _, name in found}
    assert ("", "BatchNormalization") not in found
    assert {f.name for f in proto.functions} == {name for domain, name in found if domain == "hybridkit"}
    assert report.verification.native
    tolerance = 1e-4 * abs(output(model, x[:1])).max() if activations == "float" else 1e-2
    for inputs in (x[:1], x, torch.randn(2, 2, 9, 10)):
        want = output(model, inputs)
        np.testing.assert_allclose(run_ort(path, inputs), want, atol=tolerance)
        got = ReferenceEvaluator(proto).run(None, {"input": inputs.numpy()})[0]
        np.testing.assert_allclose(got, want, atol=tolerance)


def test_transformer_with_dynamic_sequence_and_tied_embedding(tmp_path):
    torch.manual_seed(4)
    ids = torch.randint(0, 40, (4, 12))
    model, packed = quantized(TinyTransformer(), ids, quantize_all=True, codec="base3")
    assert {layer.codec for layer in packed.layers.values()} == {"base3"}
    path = tmp_path / "lm.onnx"
    export(
        model, packed, path, example_inputs=[ids[:1, :4]], dynamic_axes=[{0: "batch", 1: "sequence"}],
        validation=Validation(batches=[(ids,)]),
    )  # fmt: skip
    proto = onnx.load(path)
    shapes = [tuple(t.dims) for t in proto.graph.initializer if t.data_type == onnx.TensorProto.UINT8]
    assert sorted(shapes) == [(1, 1, 16, 4), (3, 1, 16, 4), (40, 4)], "the tied weight once, by rows"
    assert {f.name for f in proto.functions} == {"TernaryMatMulInt8", "TernaryGather"}
    assert [d.dim_param for d in proto.graph.input[0].type.tensor_type.shape.dim] == ["batch", "sequence"]
    for batch, length in ((1, 1), (2, 12), (3, 5)):
        want = output(model, ids[:batch, :length])
        np.testing.assert_allclose(run_ort(path, ids[:batch, :length]), want, atol=1e-2)
        got = ReferenceEvaluator(proto).run(None, {"input": ids[:batch, :length].numpy()})[0]
        np.testing.assert_allclose(got, want, atol=1e-2)


def test_matmulnbits_holds_stock_operators_only(export_mlp, mlp_network, mlp_inputs, tmp_path):
    path = tmp_path / "model.matmulnbits.onnx"
    report = export_mlp(path)
    proto = onnx.load(path)
    assert report.target == "matmulnbits"
    assert not proto.functions
    assert operators(proto)["com.microsoft", "MatMulNBits"] == 2
    assert {n.domain for n in proto.graph.node} == {"", "com.microsoft"}
    assert "hybridkit" not in {i.domain for i in proto.opset_import}
    want = output(mlp_network[0], mlp_inputs)
    got = run_ort(path, mlp_inputs)
    assert np.square(got - want).sum() < 0.01 * np.square(want).sum()
    assert 0 < report.verification.loss < 0.01
    assert report.ratio > 3


def test_fp32_twin(export_mlp, mlp_network, mlp_inputs, tmp_path):
    path = tmp_path / "twin.onnx"
    report = export_mlp(path, target="fp32")
    proto = onnx.load(path)
    assert {n.domain for n in proto.graph.node} == {""}
    assert not proto.functions
    assert report.ratio == pytest.approx(1, rel=0.03)
    weight = mlp_network[1].layers["3"].dequantize().T
    arrays = [numpy_helper.to_array(t) for t in proto.graph.initializer]
    assert any(a.shape == weight.shape and np.array_equal(a, weight) for a in arrays)


def test_full_precision_network(mlp_inputs, tmp_path):
    torch.manual_seed(5)
    plain = mlp().eval()
    report = export(plain, None, tmp_path / "plain.onnx", example_inputs=[mlp_inputs[:1]], opset=21)
    assert report.bits_per_weight is None
    assert report.ratio == pytest.approx(1, rel=0.1)
    assert report.verification.max_rel < 1e-5
    proto = onnx.load(tmp_path / "plain.onnx")
    assert {i.domain: i.version for i in proto.opset_import} == {"": 21}
    np.testing.assert_allclose(
        run_ort(tmp_path / "plain.onnx", mlp_inputs), output(plain, mlp_inputs), atol=1e-5
    )


def test_after_the_fact_the_packed_network_is_the_reference(mlp_inputs, tmp_path):
    torch.manual_seed(6)
    plain = mlp().eval()
    from hybridkit.quant.post_training import quantize

    packed = quantize(plain, quantizer="ternary-mse", activations="float").packed
    assert isinstance(packed, PackedModel)
    path = tmp_path / "after.onnx"
    export(
        plain, packed, path, example_inputs=[mlp_inputs[:1]], validation=Validation(batches=[(mlp_inputs,)])
    )
    want = output(load_packed(plain, packed), mlp_inputs)
    np.testing.assert_allclose(run_ort(path, mlp_inputs), want, atol=1e-4)
    assert isinstance(plain[0], nn.Linear)


def test_the_module_is_left_as_it_was(export_mlp, mlp_network, tmp_path):
    model = copy.deepcopy(mlp_network[0]).train()
    model[1].eval()
    export_mlp(tmp_path / "m.onnx", model)
    assert model.training
    assert model[0].training
    assert not model[1].training


def test_several_inputs_and_outputs(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x, y):
            hidden = self.a(x) + y
            return {"scores": self.b(hidden), "hidden": hidden}

    path = tmp_path / "two.onnx"
    x, y = torch.randn(5, 4), torch.randn(5, 3)
    report = export(Two(), None, path, example_inputs=[x, y])
    proto = onnx.load(path)
    assert [v.name for v in proto.graph.input] == ["input_0", "input_1"]
    assert [v.name for v in proto.graph.output] == ["scores", "hidden"]
    assert report.verification.max_rel < 1e-5
    assert set(report.verification.differences) == {"scores", "hidden"}


@pytest.mark.parametrize("opset", [17, 24])
def test_opsets_that_cannot_be_written(mlp_network, mlp_inputs, tmp_path, opset):
    with pytest.raises(UsageError, match="from 18 to 23"):
        export(*mlp_network, tmp_path / "m.onnx", example_inputs=[mlp_inputs[:1]], opset=opset)


def test_a_fixed_dimension_is_named(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, 6)

    with pytest.raises(HybridkitError, match=r"batch|cannot export"):
        export(Fixed(), None, tmp_path / "m.onnx", example_inputs=[torch.randn(2, 6)])
    assert not list(tmp_path.iterdir())


def test_the_suffix_chooses_the_exporter(tmp_path, mlp_network, mlp_inputs):
    assert target_for(tmp_path / "a.onnx") == "hybridkit:onnx"
    assert target_for(tmp_path / "a.fp32.onnx") == "hybridkit:fp32"
    assert target_for(tmp_path / "a.matmulnbits.onnx") == "hybridkit:matmulnbits"
    assert target_for(tmp_path / "a.gguf") == "hybridkit:gguf"
    with pytest.raises(UsageError, match=r"names end in .*\.onnx"):
        target_for(tmp_path / "a.tflite")
    with pytest.raises(UsageError, match=r"files that end in \.onnx"):
        export(*mlp_network, tmp_path / "a.bin", example_inputs=[mlp_inputs[:1]], target="onnx")


def test_arguments_that_do_not_fit(mlp_network, mlp_inputs, tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(UsageError, match="do not fit together"):
        export(*mlp_network, path, example_inputs=[mlp_inputs[:1]], input_names=["a", "b"])
    with pytest.raises(UsageError, match="no axis 2"):
        export(*mlp_network, path, example_inputs=[mlp_inputs[:1]], dynamic_axes=[{2: "width"}])
    with pytest.raises(HybridkitError, match="there is no folder"):
        export(*mlp_network, tmp_path / "no" / "m.onnx", example_inputs=[mlp_inputs[:1]])


def test_weights_that_torch_hands_over_as_views_are_written(tmp_path):
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv1d(16, 24, 3), nn.Linear(24, 32)

        def forward(self, x):
            return self.linear(self.conv(x).transpose(1, 2))

    torch.manual_seed(0)
    report = export(Transposed(), None, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 16, 7),))
    assert report.verification.max_rel < 1e-5
