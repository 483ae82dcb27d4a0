"""The radius rule: equation, quantile, mis-set radii, real networks."""

from __future__ import annotations

import math
import random

import pytest
import torch
from small_networks import batch, mlp
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.optim.constraints.l2 import L2Ball
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.radius import RATE, TARGET_SHARE, RadiusRule


def test_equation():
    rule = RadiusRule(0.5)
    rule.update([0.6])
    assert rule.radii == [pytest.approx(0.5 * math.exp(2.0 * 0.7))]
    before = rule.radii[0]
    rule.update([0.0])
    assert rule.radii == [pytest.approx(before * math.exp(-1.0 * 0.3))]


def test_rate_falls_to_its_floor():
    rule = RadiusRule(1.0)
    for _ in range(100):
        rule.update([0.0])
    before = rule.radii[0]
    rule.update([0.0])
    assert rule.radii[0] == pytest.approx(before * math.exp(-RATE * TARGET_SHARE))


@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_follows_the_quantile(spread):
    generator = random.Random(0)
    rule, above = RadiusRule(0.01), []
    for _ in range(4000):
        norm = generator.lognormvariate(0.0, spread)
        above.append(norm > rule.radii[0])
        rule.update([norm])
    assert sum(above[100:]) / len(above[100:]) == pytest.approx(TARGET_SHARE, abs=0.03)


@pytest.mark.parametrize("true_size", [0.0005, 0.05, 0.5, 5.0])
def test_a_mis_set_radius_is_left_within_50_steps(true_size):
    generator = random.Random(1)
    rule = RadiusRule(0.01)
    for _ in range(50):
        rule.update([true_size * generator.lognormvariate(0.0, 0.1)])
    assert 0.6 * true_size < rule.radii[0] < 1.7 * true_size


def test_one_radius_per_ball():
    rule = RadiusRule(0.01, balls=4)
    assert rule.total == pytest.approx(0.01)
    rule.update([1.0, 0.0, 1.0, 0.0])
    assert rule.radii[0] == rule.radii[2] > 0.005 > rule.radii[1] == rule.radii[3]


def test_without_adaptation_nothing_moves():
    rule = RadiusRule(0.3, adapt=False)
    rule.update([7.0])
    assert rule.radii == [0.3]


def test_nan_is_ignored():
    rule = RadiusRule(0.3)
    rule.update([math.nan])
    assert rule.radii == [0.3]


def test_state_round_trip():
    rule, other = RadiusRule(0.01, balls=2), RadiusRule(5.0, balls=2)
    rule.update([1.0, 0.0])
    other.load_state_dict(rule.state_dict())
    rule.update([0.1, 0.1])
    other.update([0.1, 0.1])
    assert rule.state_dict() == other.state_dict()
    with pytest.raises(UsageError, match="2 radii, this optimizer 1"):
        RadiusRule(1.0).load_state_dict(rule.state_dict())


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_a_radius_has_to_be_positive(radius):
    with pytest.raises(UsageError, match="positive number"):
        RadiusRule(radius)


def wide_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 400), nn.ReLU(), nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 3))


@pytest.mark.parametrize("network", [mlp, wide_network])
def test_real_networks_leave_a_mis_set_radius_and_lose_nothing(network):
    """0.01 is several to tens of times too small for Adam at 1e-3 here."""
    losses = {}
    for constrained in (False, True):
        model = network()
        base = torch.optim.AdamW(model.parameters(), lr=1e-3)
        optimizer = HybridOptimizer(base, constraint=L2Ball() if constrained else None, measure_updates=True)
        norms, radii = [], []
        for step in range(60):
            x, y = batch(step, 64)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            torch.autograd.backward(loss)
            optimizer.step()
            norms.append(optimizer.last_step["unconstrained_norm"])
            radii.append(optimizer.last_step["trust_radius"])
        losses[constrained] = loss.item()
        if constrained:
            assert radii[0] == 0.01 < min(norms[:5])
            assert 0.8 * norms[-1] < radii[-1] < 1.25 * norms[-1]
    assert losses[True] < losses[False] * 1.1
