"""Quantizers with a way of their own along the ramp: against obvious twins, hard at its end to the bit."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.packing.model import PackedModel
from hybridkit.quant.annealed import TernaryDeadzone, TernarySoftmax, soft_ternary
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert
from hybridkit.quant.layers import set_ramp
from hybridkit.quant.prepare import prepare_qat_
from hybridkit.quant.protocol import relaxed
from hybridkit.quant.ternary import TernaryAbsmean
from hybridkit.runtime.modules import load_packed
from hybridkit.training.config import HYBRID_RAMP, resolve

NAMES = ("ternary-softmax", "ternary-deadzone")
GRANULARITIES = ("channel", "tensor", "group:5")


def softmax_twin(weight, scale, temperature):
    """The mean of the codes as the paper writes it; its gradient is autograd's."""
    levels = torch.tensor([-1.0, 0.0, 1.0], dtype=weight.dtype)
    distance = (weight / scale).unsqueeze(-1) - levels
    return scale * (torch.softmax(-distance.square() / temperature, dim=-1) @ levels)


def schedule_twin(progress, blend):
    if progress < blend:
        return progress / blend, 1.0
    return 1.0, 0.5 * (1 + math.cos(math.pi * (progress - blend) / (1 - blend)))


@given(st.integers(0, 2**31), st.floats(0.02, 3), st.floats(0.1, 4))
@settings(max_examples=60, deadline=None)
def test_the_soft_weight_and_its_slope_are_the_softmaxs(seed, temperature, size):
    generator = torch.Generator().manual_seed(seed)
    weight = (size * torch.randn(3, 7, generator=generator)).double().requires_grad_()
    scale = torch.rand(3, 1, generator=generator).double() + 0.1
    mean, slope = soft_ternary(weight.detach(), scale, temperature)
    twin = softmax_twin(weight, scale, temperature)
    twin.sum().backward()
    torch.testing.assert_close(mean, twin.detach())
    torch.testing.assert_close(slope, weight.grad)


@given(st.integers(0, 2**31), st.floats(0, 0.99))
@settings(max_examples=40, deadline=None)
def test_softmax_goes_along_the_ramp_as_its_twin(seed, progress):
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    quantizer = TernarySoftmax(TernarySoftmax.Options(temperature=0.5, blend=0.3))
    quantized = quantizer.quantize(weight)
    soft = relaxed(quantizer, weight, quantized, progress)
    (gradient,) = torch.autograd.grad(soft.weight.sum(), weight)
    share, softness = schedule_twin(progress, 0.3)
    twin = softmax_twin(weight, quantized.scale[:, None], 0.5 * softness)
    twin = (1 - share) * weight + share * twin
    (expected,) = torch.autograd.grad(twin.sum(), weight)
    torch.testing.assert_close(soft.weight, twin)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_cold_codes_are_the_rounded_ones():
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    quantizer = TernarySoftmax()
    quantized = quantizer.quantize(weight)
    soft = relaxed(quantizer, weight, quantized, 1 - 1e-6)
    torch.testing.assert_close(soft.weight, quantized.dequantize())


def test_the_default_temperature_changes_normal_weights_least():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 200_000, generator=generator)
    scale = weight.abs().mean()[None, None]

    def error(temperature):
        return float((soft_ternary(weight, scale, temperature)[0] - weight).square().mean())

    chosen = TernarySoftmax().options.temperature
    assert error(chosen) < min(error(chosen - 0.05), error(chosen + 0.05))


@given(st.integers(0, 2**31), st.floats(0, 0.999))
@settings(max_examples=40, deadline=None)
def test_deadzone_is_the_paper_along_the_ramp(seed, progress):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(9, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 9, generator=generator))
    x = torch.randn(5, 9, generator=generator)
    model = nn.Sequential(layer)
    how = {"quantizer": "ternary-deadzone", "strength": 0.1, "blend": 0.3}
    prepare_qat_(model, QuantConfig(weights=how, activations="float", quantize_all=True))
    set_ramp(model, progress)
    quantized = layer.quantized_weight()
    share, softness = schedule_twin(progress, 0.3)
    weight = layer.weight.detach()
    y = x @ torch.lerp(weight, quantized.dequantize(), share).T + layer.bias
    for n in range(4):
        dead = [float(weight[n, k]) for k in range(9) if quantized.codes[n, k] == 0]
        y[:, n] += 0.1 * share * softness * sum(dead)
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    model(x).sum().backward()
    expected = x.sum(dim=0) + 5 * 0.1 * share * softness * (quantized.codes == 0)
    torch.testing.assert_close(layer.weight.grad, expected.float(), rtol=1e-4, atol=1e-4)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 10)
        self.line = nn.Conv1d(10, 6, 3, padding=1)
        self.hidden = nn.Linear(6, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, tokens):
        return self.head(self.hidden(self.line(self.embed(tokens).transpose(1, 2)).transpose(1, 2)))


TOKENS = torch.arange(20).view(4, 5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_ramp_goes_from_the_network_to_what_is_packed(tmp_path, name, granularity):
    torch.manual_seed(0)
    model = Network()
    plain = model(TOKENS)
    how = QuantConfig(weights=name, granularity=granularity, quantize_all=True)
    hard = prepare_qat_(
        copy.deepcopy(model),
        QuantConfig(weights="ternary-absmean", granularity=granularity, quantize_all=True),
    )
    prepare_qat_(model, how)
    set_ramp(model, 0.0)
    torch.testing.assert_close(model(TOKENS), plain, rtol=1e-5, atol=1e-6)
    set_ramp(model, 0.6)
    with pytest.raises(UsageError, match="ramp"):
        convert(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for progress in (0.1, 0.5, 0.9, 1.0):
        set_ramp(model, progress)
        optimizer.zero_grad()
        model(TOKENS).square().mean().backward()
        optimizer.step()
    hard.load_state_dict(model.state_dict())
    assert torch.equal(model(TOKENS), hard(TOKENS))  # nothing of the way is left
    path = tmp_path / "model.hk.safetensors"
    convert(model).save(path)
    packed = PackedModel.load(path)
    for layer in packed.layers.values():
        trained = model.get_submodule(layer.name).quantized_weight()
        assert np.array_equal(layer.unpack(), trained.codes.numpy())
        assert np.array_equal(layer.scale, trained.scale.numpy())
    torch.testing.assert_close(load_packed(Network(), packed)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_has_a_ramp_where_the_quantizer_anneals(name):
    assert resolve(ternary=True, qat=True, quantizer=name).ramp == HYBRID_RAMP
    assert resolve(ternary=True, qat=True, quantizer=name, ramp=0.5).ramp == 0.5
    assert resolve(ternary=True, qat=True).ramp == 0


def test_unused_options_are_refused():
    with pytest.raises(UsageError, match="blend"):
        resolve(ternary=True, qat=True, quantizer="ternary-softmax", options={"quantizer": {"blend": 1.5}})


def test_the_quantizers_differ_only_on_the_way():
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    expected = TernaryAbsmean().quantize(weight)
    for quantizer in (TernarySoftmax(), TernaryDeadzone()):
        found = quantizer.quantize(weight)
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.scale, expected.scale)
