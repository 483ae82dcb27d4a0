"""Conversion: what trained is what is packed, everything once, one layer in memory at a time."""

import copy
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.packing.model import PackedModel, write_packed
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert, packing_source
from hybridkit.quant.frozen import freeze_codes_, parse_trainable
from hybridkit.quant.layers import qat_layers, set_ramp
from hybridkit.quant.post_training import quantize
from hybridkit.quant.prepare import full_precision_copy, prepare_qat, prepare_qat_
from hybridkit.runtime.modules import load_packed

SPECS = [
    "ternary-absmean",
    "ternary-mse",
    "ternary-learned",
    "binary",
    {"quantizer": "nbit", "bits": 2},
    {"quantizer": "nbit", "bits": 8},
    {"quantizer": "nbit", "bits": 4, "group_size": 5},
]


class Network(nn.Module):
    """Every kind of layer, buffers, a shared module and a tied head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.norm = nn.BatchNorm1d(8)
        self.line = nn.Conv1d(8, 8, 3, padding=1)
        self.plane = nn.Conv2d(1, 2, 3, padding=1)
        self.hidden = nn.Linear(8, 8)
        self.again = self.hidden
        self.head = nn.Linear(8, 20)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.line(self.norm(self.embed(tokens).transpose(1, 2)))
        x = self.plane(x[:, None]).sum(dim=1).transpose(1, 2)
        return self.head(self.again(self.hidden(x)))


TOKENS = torch.arange(20).view(4, 5)


def trained(spec, **kwargs):
    torch.manual_seed(0)
    model = prepare_qat(Network(), quantizer=spec, **kwargs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(TOKENS).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("quantize_all", [True, False])
def test_what_trained_is_what_is_packed(spec, quantize_all):
    model = trained(spec, quantize_all=quantize_all)
    packed = convert(model)
    layers = qat_layers(model)
    # the embedding is stored, the head is an alias of it
    assert set(packed.layers) == set(layers) - {"head"}
    for name, layer in packed.layers.items():
        quantized = layers[name].quantized_weight()
        assert np.array_equal(layer.unpack(), quantized.codes.numpy())
        assert np.array_equal(layer.scale, quantized.scale.numpy())
        assert layer.group_size == quantized.group_size
        assert layer.activations == "int8"
        assert layer.shape == tuple(layers[name].weight.shape)
    state = full_precision_copy(model).state_dict()
    held = {layer.weight_name for layer in packed.layers.values()} | set(packed.tensors) | set(packed.tied)
    assert held == set(state)
    for name, array in packed.tensors.items():
        assert array.shape == tuple(state[name].shape)
        assert np.array_equal(array, state[name].numpy())
    assert packed.tied == {
        "again.weight": "hidden.weight",
        "again.bias": "hidden.bias",
        "head.weight": "embed.weight",
    }


def test_kinds_and_names_are_recorded():
    packed = convert(
        trained("ternary-learned", quantize_all=True, activations="float"), metadata={"task": "t"}
    )
    kinds = {name: layer.kind for name, layer in packed.layers.items()}
    assert kinds == {"embed": "embedding", "line": "conv1d", "plane": "conv2d", "hidden": "linear"}
    assert {layer.quantizer for layer in packed.layers.values()} == {"ternary-learned"}
    assert {layer.activations for layer in packed.layers.values()} == {"float"}
    assert packed.metadata["task"] == "t"
    assert QuantConfig.from_json(packed.metadata["quantization"]).activations == "float"
    assert not any("quantizer" in name for name in packed.tensors)


def test_a_codec_serves_the_layers_whose_levels_it_holds():
    model = trained("ternary-mse", overrides={"plane": "binary"})
    codecs = {name: layer.codec for name, layer in convert(model, codec="base3").layers.items()}
    assert codecs == {"line": "base3", "plane": "one-bit", "hidden": "base3"}
    nbit = trained("nbit", overrides={"plane": "ternary-mse"})
    codecs = {name: layer.codec for name, layer in convert(nbit, codec="base3").layers.items()}
    assert codecs == {"line": "nbit4", "plane": "base3", "hidden": "nbit4"}
    with pytest.raises(UsageError, match="holds the levels of no layer"):
        convert(trained("nbit"), codec="one-bit")


def test_codes_with_a_pattern_have_a_codec_that_only_they_fit():
    for model in (trained("ternary-sparse"), frozen(trained("ternary-sparse"))):
        for codec in (None, "two-bit", "base3", "sparse34"):
            assert {layer.codec for layer in convert(model, codec=codec).layers.values()} == {"sparse34"}
    with pytest.raises(UsageError, match="holds the levels of no layer"):
        convert(trained("ternary-mse"), codec="sparse34")
    in_fives = trained({"quantizer": "ternary-sparse", "granularity": "group:5"})  # which cut fours
    assert {layer.codec for layer in convert(in_fives).layers.values()} == {"two-bit"}


def frozen(model):
    freeze_codes_(model, parse_trainable("scales"))
    return model


def test_tensors_are_stored_in_their_own_type_or_the_one_asked_for():
    model = prepare_qat(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(torch.bfloat16))
    tensors = convert(model).tensors
    for float_dtype, kind in {None: ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}.items():
        stored = convert(model, float_dtype=float_dtype).tensors["2.weight"]
        assert stored.dtype == kind
        wanted = model[2].weight.detach().to(torch.float16 if kind == np.float16 else torch.float32)
        assert np.array_equal(stored.astype(np.float32), wanted.float().numpy())
    assert convert(model.double()).tensors["2.weight"].dtype == np.float32
    assert convert(model.half()).tensors["2.weight"].dtype == np.float16
    assert tensors["1.num_batches_tracked"].dtype == np.int64
    assert tensors["1.num_batches_tracked"].shape == ()


def test_what_was_packed_does_not_follow_the_model():
    model = trained("ternary-absmean")
    packed = convert(model)
    before = packed.tensors["line.bias"].copy()
    with torch.no_grad():
        model.line.bias.add_(1)
    assert np.array_equal(packed.tensors["line.bias"], before)


def test_a_model_that_cannot_be_packed():
    with pytest.raises(UsageError, match="no quantised layer; call prepare_qat"):
        convert(Network())
    model = trained("ternary-absmean")
    set_ramp(model, 0.5)
    with pytest.raises(UsageError, match="on the ramp"):
        convert(model)
    set_ramp(model, 1)
    model.line.weight.data[0, 0, 0] = float("nan")
    with pytest.raises(UsageError, match="'line' has weights that are not finite"):
        convert(model)


@pytest.mark.parametrize("codec", [None, "base3"])
def test_the_file_is_that_of_the_packed_model(tmp_path, codec):
    model = trained("ternary-mse", quantize_all=True)
    streamed = write_packed(tmp_path / "streamed", packing_source(model, metadata={"a": 1}, codec=codec))
    packed = convert(model, metadata={"a": 1}, codec=codec)
    assert packed.save(tmp_path / "whole") == streamed == packed.sizes()
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert set(PackedModel.load(tmp_path / "streamed").layers) == set(packed.layers)


def test_a_failure_leaves_no_file(tmp_path):
    model = trained("ternary-absmean")
    model.hidden.weight.data[0, 0] = float("inf")
    with pytest.raises(UsageError, match="not finite"):
        write_packed(tmp_path / "model", packing_source(model))
    assert not list(tmp_path.iterdir())


def test_streaming_holds_one_layer_at_a_time(tmp_path):
    one, many = (
        prepare_qat(nn.Sequential(*(nn.Linear(256, 256) for _ in range(n))), quantize_all=True)
        for n in (1, 12)
    )
    peaks = []
    for model in (one, one, many):  # the first run also pays for what is made once
        tracemalloc.start()  # sees NumPy's memory: codes, packed bytes, scales
        write_packed(tmp_path / "model", packing_source(model))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    packed_layer = 256 * 256 // 4
    assert peaks[2] < peaks[1] + 4 * packed_layer


def test_nothing_is_produced_before_it_is_asked_for():
    model = trained("ternary-absmean")
    source = packing_source(model)
    with torch.no_grad():
        model.line.weight.neg_()
    line = next(layer for layer in source.layers if layer.spec.name == "line").produce()
    assert np.array_equal(line.unpack(), model.line.quantized_weight().codes.numpy())


def test_the_model_is_left_alone():
    model = trained("ternary-learned", quantize_all=True)
    before = copy.deepcopy(model.state_dict())
    convert(model)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_numbers_that_fp16_does_not_hold_are_refused_and_infinity_is_none():
    model = prepare_qat(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)))
    with torch.no_grad():
        model[1].bias[0] = torch.inf
    assert np.isinf(convert(model, float_dtype="fp16").tensors["1.bias"][0])
    with torch.no_grad():
        model[1].bias[1] = 1e5
    assert float(convert(model, float_dtype="bf16").tensors["1.bias"][1]) == pytest.approx(1e5, rel=0.01)
    with pytest.raises(
        UsageError, match=r"'1\.bias' holds numbers that fp16 does not; take --float-dtype bf16"
    ):
        convert(model, float_dtype="fp16")
    with pytest.raises(UsageError, match="no float dtype 'fp8'; valid: fp32, fp16, bf16"):
        convert(model, float_dtype="fp8")


@pytest.mark.parametrize("spec", SPECS)
def test_scales_stay_as_they_trained_unless_asked(spec):
    model = trained(spec, quantize_all=True)
    plain, short = convert(model), convert(model, float_dtype="fp16")
    assert {layer.scale_type for layer in plain.layers.values()} == {"F32"}
    assert {layer.scale_type for layer in short.layers.values()} == {"F16"}
    for name, layer in short.layers.items():
        assert np.array_equal(layer.codes, plain.layers[name].codes)
        assert np.array_equal(layer.scale, plain.layers[name].scale.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(("factor", "kind"), [(1.0, "F16"), (1e-3, "F16"), (1e-7, "F32"), (1e6, "F32")])
def test_scales_that_fp16_would_harm_stay_fp32(factor, kind):
    """Beyond fp16, or so small that it has few digits left: more than half of the layer's rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8))
    with torch.no_grad():
        model[0].weight.mul_(factor)
    layer = quantize(model, quantize_all=True, float_dtype="bf16").packed.layers["0"]
    assert layer.scale_type == kind
    error = np.linalg.norm(layer.dequantize() - model[0].weight.detach().numpy())
    exact = quantize(model, quantize_all=True).packed.layers["0"].dequantize()
    assert error <= 1.5 * np.linalg.norm(exact - model[0].weight.detach().numpy())


@pytest.mark.parametrize(("factor", "kind"), [(1.0, "F16"), (1e-8, "F32"), (1e8, "F32")])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_short_scales_of_codes_that_took_the_weights_place(bits, factor, kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8))
    with torch.no_grad():
        model[0].weight.mul_(factor)
    prepare_qat_(model, QuantConfig(weights={"quantizer": "nbit", "bits": bits}, quantize_all=True))
    freeze_codes_(model, parse_trainable("scales"))
    short, exact = convert(model, float_dtype="fp16").layers["0"], convert(model).layers["0"]
    assert (short.scale_type, exact.scale_type) == (kind, "F32")
    assert np.array_equal(short.codes, exact.codes)
    np.testing.assert_allclose(short.scale, exact.scale, rtol=2**-11)


def test_a_dead_row_does_not_cost_a_layer_its_short_scales():
    model = nn.Sequential(nn.Linear(64, 8))
    with torch.no_grad():
        model[0].weight[3] *= 1e-7
    assert quantize(model, quantize_all=True, float_dtype="fp16").packed.layers["0"].scale_type == "F16"


def test_a_packed_model_in_half_precision_runs(tmp_path):
    model = trained("ternary-mse")
    for float_dtype in ("fp16", "bf16"):
        convert(model, float_dtype=float_dtype).save(tmp_path / "model")
        packed = PackedModel.load(tmp_path / "model")
        state = load_packed(full_precision_copy(model), packed).state_dict()
        assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float32}
        assert packed.sizes().file_bytes < convert(model).sizes().file_bytes
