"""The radius rule: equation, quantile, mis-set radii, real networks."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import batch, mlp
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.optim.constraints.l2 import L2Ball
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.radius import TARGET_SHARE, WINDOW, RadiusRule


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=3 * WINDOW))
def test_it_is_the_quantile_of_the_recent_norms(norms):
    rule = RadiusRule(0.5)
    for norm in norms:
        rule.update([norm])
    recent = norms[-WINDOW:]
    assert rule.radii[0] in recent
    assert (np.array(recent) < rule.radii[0]).mean() <= 1 - TARGET_SHARE + 1e-9
    assert (np.array(recent) > rule.radii[0]).mean() <= TARGET_SHARE


def test_the_first_norm_replaces_the_first_radius():
    for initial in (1e-6, 1.0, 1e6):
        rule = RadiusRule(initial)
        rule.update([0.2])
        assert rule.radii == [0.2]


@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_follows_the_quantile(spread):
    generator = random.Random(0)
    rule, above = RadiusRule(0.01), []
    for _ in range(4000):
        norm = generator.lognormvariate(0.0, spread)
        above.append(norm > rule.radii[0])
        rule.update([norm])
    assert sum(above[100:]) / len(above[100:]) == pytest.approx(TARGET_SHARE, abs=0.03)


def test_one_radius_per_ball():
    rule = RadiusRule(0.01, balls=4)
    assert rule.total == pytest.approx(0.01)
    rule.update([1.0, 0.001, 1.0, 0.001])
    assert rule.radii == [1.0, 0.001, 1.0, 0.001]


def test_without_adaptation_nothing_moves():
    rule = RadiusRule(0.3, adapt=False)
    rule.update([7.0])
    assert rule.radii == [0.3]


def test_steps_that_say_nothing_are_ignored():
    rule = RadiusRule(0.3)
    rule.update([math.nan])
    rule.update([0.0])
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
            assert 0.8 * norms[-1] < radii[-1] < 1.4 * norms[-1]
    assert losses[True] < losses[False] * 1.1
