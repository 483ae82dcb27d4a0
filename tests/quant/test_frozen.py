"""Frozen codes: the same network to the bit, gradients of gains and adapters as obvious twins have them."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.exporting import export
from hybridkit.packing.model import PackedModel
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert
from hybridkit.quant.frozen import KINDS, freeze_codes_, parse_trainable
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.post_training import quantize
from hybridkit.quant.prepare import full_precision_copy, prepare_qat_
from hybridkit.runtime.modules import load_packed
from hybridkit.runtime.session import session


class Network(nn.Module):
    """Every kind of layer, a tied head, a norm, and widths that no group divides."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 10)
        self.line = nn.Conv1d(10, 6, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.hidden = nn.Linear(6, 10)
        self.head = nn.Linear(10, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.line(self.embed(tokens).transpose(1, 2)).transpose(1, 2)
        return self.head(torch.relu(self.hidden(self.norm(x))))


TOKENS = torch.arange(20).view(4, 5)
WITH_OFFSET = {"quantizer": "nbit", "offset": True}
EVERYTHING = ",".join(KINDS)


def made(granularity="channel", weights="ternary-mse", trainable=EVERYTHING, activations="int8"):
    torch.manual_seed(0)
    how = QuantConfig(weights=weights, granularity=granularity, activations=activations, quantize_all=True)
    model = prepare_qat_(Network(), how)
    before = copy.deepcopy(model)
    freeze_codes_(model, parse_trainable(trainable))
    return model, before


@pytest.mark.parametrize("granularity", ["channel", "group:4"])
@pytest.mark.parametrize("weights", ["ternary-mse", "ternary-learned", "binary", "nbit", WITH_OFFSET])
def test_freezing_changes_no_bit_and_keeps_ties(weights, granularity):
    model, before = made(granularity, weights)
    assert torch.equal(model(TOKENS), before(TOKENS))
    assert model.head.weight is model.embed.weight
    assert model.hidden.weight.dtype == torch.int8
    assert not any(p.requires_grad for p in model.parameters() if not p.is_floating_point())
    torch.testing.assert_close(
        full_precision_copy(model).hidden.weight, before.hidden.quantized_weight().dequantize()
    )


def test_kinds_are_told_apart_by_structure():
    trained = {}
    for kind in KINDS:
        model, _ = made(trainable=kind)
        trained[kind] = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = ("line", "hidden")
    assert trained["scales"] == {f"{name}.quantizer_parameters.gain" for name in ("embed", *layers)}
    assert trained["norms"] == {"norm.weight", "norm.bias"}
    assert trained["biases"] == {f"{name}.bias" for name in layers}
    sides = ("hidden.adapter", "head.adapter")
    assert trained["adapters"] == {f"{side}.{name}" for side in sides for name in ("down", "up")}
    assert trained["rest"] == set()


@pytest.mark.parametrize("granularity", ["channel", "group:4"])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_the_gradient_of_a_gain_is_that_of_the_scale_it_stands_for(granularity, seed):
    generator = torch.Generator().manual_seed(seed)
    how = QuantConfig(weights="ternary-mse", granularity=granularity, activations="float", quantize_all=True)
    model = prepare_qat_(nn.Sequential(nn.Linear(10, 6)), how)
    freeze_codes_(model, parse_trainable("scales"))
    layer = model[0]
    gain = layer.quantizer_parameters["gain"]
    with torch.no_grad():
        gain.copy_(torch.rand(gain.shape, generator=generator) + 0.5)
    x, target = torch.randn(7, 10, generator=generator), torch.randn(7, 6, generator=generator)
    ((model(x) - target) ** 2).sum().backward()
    scale = (layer.quantizer_parameters["scale"] * gain.detach()).view(6, -1).requires_grad_()
    per_weight = scale.repeat_interleave(4, dim=1)[:, :10] if granularity != "channel" else scale
    twin = x @ (layer.weight.float() * per_weight).T + layer.bias.detach()
    ((twin - target) ** 2).sum().backward()
    expected = scale.grad.flatten() * layer.quantizer_parameters["scale"]
    torch.testing.assert_close(gain.grad, expected, rtol=1e-3, atol=1e-3)


def test_adapters_are_low_rank_and_begin_without_effect():
    model, _ = made(trainable="adapters:3", activations="float")
    adapter = model.hidden.adapter
    assert adapter.down.shape == (3, 6)
    assert not adapter.up.any()
    with torch.no_grad():
        adapter.up.normal_()
    x = torch.randn(2, 6)
    weight = model.hidden.quantized_weight().dequantize() + adapter.up @ adapter.down
    torch.testing.assert_close(model.hidden(x), x @ weight.T + model.hidden.bias)


@pytest.mark.parametrize(
    ("granularity", "target", "tolerance"), [("channel", "matmulnbits", 0.05), ("group:16", "onnx", 1e-4)]
)
def test_what_trains_is_what_is_packed_and_exported(tmp_path, granularity, target, tolerance):
    model, before = made(granularity)
    codes = {name: layer.weight.clone() for name, layer in qat_layers(model).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        model(TOKENS).square().mean().backward()
        optimizer.step()
    for name, layer in qat_layers(model).items():
        assert torch.equal(layer.weight, codes[name])
    expected = model.eval()(TOKENS)
    assert not torch.allclose(expected, before.eval()(TOKENS))
    report = quantize(model, float_dtype="fp16")
    assert all(row.relative_error is None for row in report.layers)
    assert all(layer.scale.dtype == np.float32 for layer in report.packed.layers.values())
    path = tmp_path / "model.hk.safetensors"
    convert(model).save(path)
    packed = PackedModel.load(path)
    for name, layer in packed.layers.items():
        trained = model.get_submodule(name).quantized_weight()
        assert np.array_equal(layer.unpack(), trained.codes.numpy())
        assert np.array_equal(layer.scale, trained.scale.numpy())
    torch.testing.assert_close(load_packed(Network(), packed)(TOKENS), expected)
    file = tmp_path / "model.onnx"
    export(Network(), packed, file, target=target, example_inputs=(TOKENS,))
    (found,) = session(file).run(None, {"input": TOKENS.numpy()})
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=tolerance, atol=tolerance)


def test_transposed_layers_of_gpt2():
    import transformers

    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    prepare_qat_(model, QuantConfig())
    before = model(TOKENS).logits
    freeze_codes_(model, parse_trainable("scales,adapters:2"))
    assert torch.equal(model(TOKENS).logits, before)
    fresh = transformers.GPT2LMHeadModel(config)
    torch.testing.assert_close(load_packed(fresh, convert(model))(TOKENS).logits, before)


def test_there_must_be_codes_to_freeze():
    with pytest.raises(UsageError, match="prepare_qat"):
        freeze_codes_(Network(), parse_trainable("scales"))
