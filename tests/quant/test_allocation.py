"""Bits within a budget: exact, never above it, and spent where the error is."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.quant.allocation import (
    Candidate,
    _errors,
    allocate_bits,
    candidates,
    cluster_layers,
    input_squares,
)
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.plan import make_quantizer, plan_layers
from hybridkit.quant.prepare import prepare_qat


@given(st.integers(1, 40), st.integers(1, 200), st.sampled_from(candidates()))
def test_a_candidate_costs_what_is_stored(N, K, candidate):
    quantizer, _ = make_quantizer(candidate.spec)
    quantized = quantizer.quantize(torch.randn(N, K))
    nominal = {"binary": 1.0, "ternary-mse": 1.58}
    spec = candidate.spec
    bits = nominal[spec] if isinstance(spec, str) else spec["bits"]
    scales = 32 * quantized.scale.numel() if quantized.group_size else 0
    assert candidate.cost((N, K)) == round(100 * (bits * N * K + scales))


def test_layers_that_behave_alike_share_a_cluster():
    alike = (
        torch.tensor([[0.3, 0.2, 0.1, 0.01, 0.001]] * 3 + [[0.9, 0.8, 0.7, 0.4, 0.1]] * 2).double().numpy()
    )
    labels = cluster_layers(alike, 2, seed=0).tolist()
    assert labels in ([0, 0, 0, 1, 1], [1, 1, 1, 0, 0])
    assert set(cluster_layers(alike, 10, seed=0).tolist()) == {0, 1}


def network():
    """Three layers to quantise; ternary codes hold layer 2 without any error."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 4)
    )
    with torch.no_grad():
        model[2].weight.copy_(torch.randint(-1, 2, (32, 32)) * 0.1)
    return model


def mean_bits(model, chosen):
    by_spec = {str(option.spec): option for option in candidates()}
    weights = {name: dict(model.named_modules())[name].weight for name in chosen}
    bits = sum(by_spec[str(chosen[name])].cost(weight.shape) for name, weight in weights.items()) / 100
    return bits / sum(weight.numel() for weight in weights.values())


@pytest.mark.parametrize("target", [1, 1.3, 1.58, 2, 2.5, 4, 8])
def test_layers_stay_within_the_budget(target):
    model = network()
    overrides = allocate_bits(model, target)
    assert set(overrides) == {"0", "2", "4"}
    assert mean_bits(model, overrides) <= target + 1e-9
    prepare_qat(model, overrides=overrides)


def test_layers_get_the_bits_they_need():
    overrides = allocate_bits(network(), 2.5, k=2)
    assert overrides["2"] == "ternary-mse"
    assert overrides["0"] == overrides["4"] == {"quantizer": "nbit", "bits": 2}
    assert mean_bits(network(), allocate_bits(network(), 8, k=2)) > 5


def summed_error(model, chosen):
    total = 0.0
    for name, spec in chosen.items():
        weight = dict(model.named_modules())[name].weight.detach()
        quantizer, _ = make_quantizer(spec)
        rounded = quantizer.quantize(weight, **quantizer.parameters(weight)).dequantize()
        total += weight.numel() * float((rounded - weight).square().sum() / weight.square().sum())
    return total


@given(st.floats(1, 8), st.lists(st.integers(1, 150), min_size=3, max_size=5), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_networks_never_get_worse_than_all_layers_alike(target, widths, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    for layer in model:  # some rows with outliers, so that groups and clips matter
        layer.weight.data[::3] *= torch.randn(layer.weight[::3].shape).exp()
    config = QuantConfig(quantize_all=True)
    names = [plan.name for plan in plan_layers(model, config)]
    found = allocate_bits(model, target, quantize_all=True)
    assert mean_bits(model, found) <= target + 1e-9
    for option in candidates():
        alike = dict.fromkeys(names, option.spec)
        if mean_bits(model, alike) <= target:
            assert summed_error(model, found) <= summed_error(model, alike) * (1 + 1e-5) + 1e-9
    affordable = [dict.fromkeys(names, o.spec) for o in candidates()]
    best = min((c for c in affordable if mean_bits(model, c) <= target), key=lambda c: summed_error(model, c))
    for name in names:  # nor does any layer
        ours, theirs = (summed_error(model, {name: chosen[name]}) for chosen in (found, best))
        assert ours <= theirs * (1 + 1e-5) + 1e-9


def test_inputs_that_are_always_zero_do_not_count():
    model = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 2))
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in model:
            layer.weight.normal_()
        model[0].weight[:, 4:] = 100 * torch.randn(64, 4)  # matters only where its inputs are not zero
    x = torch.cat([torch.randn(64, 4), torch.zeros(64, 4)], dim=1)
    layer = model[0].requires_grad_(False)
    binary = [Candidate("binary", 100)]
    blind = _errors(layer.weight, None, binary)[0]
    squares = input_squares(model, plan_layers(model, QuantConfig()), (x,))
    aware = _errors(layer.weight, squares["0"], binary)[0]
    quantized = make_quantizer("binary")[0].quantize(layer.weight)
    exact = (x @ (quantized.dequantize() - layer.weight).T).square().sum() / (
        x @ layer.weight.T
    ).square().sum()
    assert abs(math.log(aware / exact)) < abs(math.log(blind / exact)) / 2


def test_convolutions_with_groups_see_their_own_inputs():
    conv = nn.Conv2d(4, 6, (2, 1), groups=2)
    x = torch.randn(3, 4, 5, 5)
    model = nn.Sequential(conv)
    squares = input_squares(model, plan_layers(model, QuantConfig()), (x,))
    found = squares["0"].reshape(6, 2, 2, 1)
    squares = x.square().mean(dim=(0, 2, 3))
    for n, c in itertools.product(range(6), range(2)):
        expected = squares[(n // 3) * 2 + c]
        torch.testing.assert_close(found[n, c].flatten(), expected.expand(2), rtol=1e-4, atol=1e-5)


def test_tied_layers_are_one_choice():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20))
    model[2].weight = model[0].weight
    overrides = allocate_bits(model, 1.8, quantize_all=True)
    assert overrides["0"] == overrides["2"]
    prepare_qat(model, quantize_all=True, overrides=overrides)


def test_the_ternary_quantizer_can_be_chosen():
    overrides = allocate_bits(network(), 1.58, k=1, ternary="ternary-absmean")
    assert overrides == {"0": "ternary-absmean", "2": "ternary-absmean", "4": "ternary-absmean"}


@pytest.mark.parametrize("target", [0.99, 8.01, 0, -1, float("nan")])
def test_budgets_that_cannot_be_met(target):
    with pytest.raises(UsageError, match="target bits go from 1 to 8"):
        allocate_bits(network(), target)


def test_other_mistakes():
    with pytest.raises(UsageError, match="at least one cluster"):
        allocate_bits(network(), 2, k=0)
    model = network()
    model[0].weight.data[0, 0] = float("inf")
    with pytest.raises(UsageError, match="not finite"):
        allocate_bits(model, 2)
