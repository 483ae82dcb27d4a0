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
    WIDTHS,
    Cluster,
    _errors,
    _importance,
    allocate_bits,
    choose_widths,
    cluster_layers,
)
from hybridkit.quant.plan import make_quantizer
from hybridkit.quant.prepare import prepare_qat

clusters = st.lists(
    st.builds(
        Cluster,
        st.integers(1, 10**6),
        st.lists(st.floats(0, 1e3), min_size=5, max_size=5).map(lambda e: tuple(sorted(e, reverse=True))),
    ),
    min_size=1,
    max_size=4,
)
targets = st.floats(1, 8)


def cost(clusters, choice):
    return sum(c.weights * WIDTHS[i] for c, i in zip(clusters, choice, strict=True)) / 100


def error(clusters, choice):
    return math.fsum(c.errors[i] for c, i in zip(clusters, choice, strict=True))


@given(clusters, targets)
@settings(max_examples=80, deadline=None)
def test_equals_trying_everything(clusters, target):
    choice = choose_widths(clusters, target)
    budget = target * sum(c.weights for c in clusters) * (1 + 1e-12)
    assert cost(clusters, choice) <= budget
    every = itertools.product(range(5), repeat=len(clusters))
    best = min(error(clusters, c) for c in every if cost(clusters, c) <= budget)
    assert error(clusters, choice) == pytest.approx(best, rel=1e-9, abs=1e-12)


@given(clusters, targets, targets)
@settings(max_examples=60, deadline=None)
def test_a_larger_budget_never_costs_quality(clusters, one, other):
    low, high = sorted((one, other))
    assert (
        error(clusters, choose_widths(clusters, high)) <= error(clusters, choose_widths(clusters, low)) + 1e-9
    )


@pytest.mark.parametrize(("target", "index"), [(1.0, 0), (1.58, 1), (2.0, 2), (4.0, 3), (8.0, 4)])
def test_a_budget_that_is_a_width_is_enough_for_it(target, index):
    even = [Cluster(n, (0.36 * n, 0.19 * n, 0.15 * n, 0.01 * n, 0.0)) for n in (7, 7)]
    assert cost(even, choose_widths(even, target)) <= target * 14 + 1e-9
    assert choose_widths(even[:1], target) == [index]


def test_many_clusters_are_no_problem():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 10**6, (16,), generator=generator).tolist()
    errors = torch.rand(16, 5, generator=generator).sort(descending=True).values.tolist()
    many = [Cluster(n, tuple(n * x for x in e)) for n, e in zip(sizes, errors, strict=True)]
    assert cost(many, choose_widths(many, 2.5)) <= 2.5 * sum(sizes)


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


def mean_bits(model, overrides):
    nominal = {"binary": 1.0, "ternary-mse": 1.58}
    bits = {
        name: nominal[spec] if isinstance(spec, str) else spec["bits"] for name, spec in overrides.items()
    }
    modules = dict(model.named_modules())
    sizes = {name: modules[name].weight.numel() for name in bits}
    return sum(bits[n] * sizes[n] for n in bits) / sum(sizes.values())


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


def test_inputs_that_are_always_zero_do_not_count():
    model = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 2))
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in model:
            layer.weight.normal_()
        model[0].weight[:, 4:] = 100 * torch.randn(64, 4)  # matters only where its inputs are not zero
    x = torch.cat([torch.randn(64, 4), torch.zeros(64, 4)], dim=1)
    layer = model[0].requires_grad_(False)
    blind = _errors(layer.weight, None, ["binary"])[0]
    aware = _errors(layer.weight, _importance(model, [layer], (x,))[layer], ["binary"])[0]
    quantized = make_quantizer("binary")[0].quantize(layer.weight)
    exact = (x @ (quantized.dequantize() - layer.weight).T).square().sum() / (
        x @ layer.weight.T
    ).square().sum()
    assert abs(math.log(aware / exact)) < abs(math.log(blind / exact)) / 2


def test_convolutions_with_groups_see_their_own_inputs():
    conv = nn.Conv2d(4, 6, (2, 1), groups=2)
    x = torch.randn(3, 4, 5, 5)
    found = _importance(nn.Sequential(conv), [conv], (x,))[conv].view(6, 2, 2, 1)
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
