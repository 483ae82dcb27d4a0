"""Codes that are tuned: they start and end as codes, and gradients reach them as the reference says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.quant.config import QuantConfig
from hybridkit.quant.frozen import freeze_layer_
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.moving_codes import loosen_, settle_
from hybridkit.quant.prepare import prepare_qat_

WEIGHTS = {
    "binary": "binary",
    "ternary": "ternary-mse",
    "2 bits": {"quantizer": "nbit", "bits": 2},
    "4 bits": {"quantizer": "nbit", "bits": 4},
    "with offset": {"quantizer": "nbit", "bits": 2, "offset": True},
}


def frozen(weights, N, K, granularity="channel"):
    torch.manual_seed(N + 31 * K)
    model = nn.Sequential(nn.Linear(K, N))
    config = QuantConfig(weights=weights, granularity=granularity, activations="float", quantize_all=True)
    prepare_qat_(model, config)
    [layer] = qat_layers(model).values()
    weight = layer.weight_matrix().detach().clone()
    freeze_layer_(layer, layer.quantized_weight())
    return layer, weight


@given(
    st.sampled_from(sorted(WEIGHTS)),
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from(["channel", "group:16"]),
)
@settings(max_examples=60, deadline=None)
def test_nothing_changes_before_the_first_step(name, N, K, granularity):
    layer, weight = frozen(WEIGHTS[name], N, K, granularity)
    x = torch.randn(3, K)
    with torch.no_grad():
        before = layer(x)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    loosen_(layer, weight)
    torch.testing.assert_close(layer(x).detach(), before, rtol=1e-5, atol=1e-6)
    settle_(layer)
    assert layer.weight.dtype == torch.int8
    for key, tensor in state.items():
        assert torch.equal(layer.state_dict()[key], tensor), key


@pytest.mark.parametrize("granularity", ["channel", "group:16"])
@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_gradients_are_those_of_the_reference(name, granularity):
    N, K = 4, 40
    layer, weight = frozen(WEIGHTS[name], N, K, granularity)
    loosen_(layer, weight)
    layer.weight.data += 0.7 * torch.randn(N, K)  # some beyond the levels
    layer.weight.requires_grad_()
    x, pull = torch.randn(5, K), torch.randn(5, N)
    torch.autograd.backward((layer(x) * pull).sum())
    made = layer.quantized_weight()
    low, high = layer.quantizer.levels[0], layer.quantizer.levels[-1]
    half = (layer.quantizer.levels[1] - low) / 2
    by_weight = pull.T @ x  # of the dequantised weight
    size = made.group_size or K
    scales = made.scale.view(N, -1)
    gain = layer.quantizer_parameters["gain"]
    for n in range(N):
        for k in range(K):
            heading = float(layer.weight[n, k])
            inside = low - half <= heading <= high + half
            expected = by_weight[n, k] * scales[n, k // size] if inside else 0.0
            assert float(layer.weight.grad[n, k]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    codes = made.codes.float()
    for place, value in enumerate(gain.grad):
        n, g = divmod(place, scales.shape[1])
        columns = slice(g * size, min((g + 1) * size, K))
        expected = (by_weight[n, columns] * codes[n, columns]).sum() * scales[n, g]
        assert float(value) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
        if made.offset is not None:
            expected = by_weight[n, columns].sum() * scales[n, g]
            found = layer.quantizer_parameters["shift"].grad[place]
            assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def test_a_code_is_the_level_next_to_its_heading():
    layer, weight = frozen("ternary-mse", 2, 8)
    loosen_(layer, weight)
    layer.weight.data = torch.tensor([[-3.0, -0.6, -0.4, 0.0, 0.4, 0.6, 3.0, 1.0]]).repeat(2, 1)
    settle_(layer)
    assert layer.weight.tolist() == [[-1, -1, 0, 0, 0, 1, 1, 1]] * 2
