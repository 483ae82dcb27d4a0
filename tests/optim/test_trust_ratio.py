"""The reduction ratio is what the step did over what the gradient promised, and steps follow it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.optim.controllers.relative_step import RelativeStep
from hybridkit.optim.controllers.trust_ratio import TrustRatio
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.protocol import Outcome, Proposal, TrainingState
from hybridkit.training.config import resolve
from hybridkit.training.trainer import Trainer

RESTING = {"low": -math.inf, "high": math.inf}  # it measures, and does nothing


def state(step=0, max_steps=100):
    return TrainingState(1.0, 1.0, -1, 0.0, 0.0, step, max_steps=max_steps)


def told(controller, ratio, step=10):
    outcome = Outcome(1.0, 0.9, Proposal(1.0), 0.1, False, ratio)
    controller.feedback(state(step), outcome)
    return controller.factor


class Asking(TrustRatio):
    """Wants the ratio of every step."""

    def propose(self, state):
        return Proposal(1.0, wants_ratio=True)


@settings(deadline=None)  # the first step imports
@given(rate=st.floats(0.01, 1.9), seed=st.integers(0, 99))
def test_of_gradient_descent_on_a_paraboloid_it_is_known(rate, seed):
    """L = w^T A w / 2 and delta = -r g: rho = 1 - r g^T A g / (2 g^T g)."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    A, w = root @ root.T / 8, torch.randn(4, generator=generator, dtype=torch.float64)
    parameter = nn.Parameter(w.clone())
    optimizer = HybridOptimizer(torch.optim.SGD([parameter], lr=rate), controller=Asking())

    def loss():
        return parameter @ A @ parameter / 2

    value = loss()
    value.backward()
    optimizer.observe(value)
    optimizer.step(evaluate=loss)
    g = A @ w
    expected = 1 - rate * (g @ A @ g) / (2 * g @ g)
    # losses come to the host in fp32
    assert optimizer.last_step["reduction_ratio"] == pytest.approx(float(expected), abs=1e-4 / rate)


def test_without_anybody_who_evaluates_it_is_the_plan():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = HybridOptimizer(torch.optim.SGD([parameter], lr=0.1), controller=Asking())
    for _ in range(3):
        loss = parameter.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
    assert "reduction_ratio" not in optimizer.last_step
    assert optimizer.controller.factor == 1


def test_steps_get_longer_and_shorter_within_bounds():
    controller = TrustRatio()
    assert told(controller, 0.9, step=4) == 1  # in the warm-up
    assert told(controller, 0.0, step=4) == pytest.approx(0.65)
    controller = TrustRatio()
    assert told(controller, 0.9) == pytest.approx(1.3)
    assert told(controller, 0.4) == pytest.approx(1.3)
    assert told(controller, -5.0) == pytest.approx(1.3 * 0.65)
    assert told(controller, math.nan) == pytest.approx(1.3 * 0.65)
    for ratio, end in ((1.0, 100.0), (0.0, 0.01)):
        for _ in range(50):
            told(controller, ratio)
        assert controller.factor == end
    low, high = controller.bounds
    assert low <= controller.propose(state(50)).lr_multiplier <= high


def test_it_asks_now_and_then_in_the_first_half():
    controller, plan = TrustRatio(TrustRatio.Options(every=10)), RelativeStep()
    asked = [step for step in range(100) if controller.propose(state(step)).wants_ratio]
    assert asked == [0, 10, 20, 30, 40]
    told(controller, 1.0)
    for step in (0, 3, 50, 99):
        planned = plan.propose(state(step)).lr_multiplier
        assert controller.propose(state(step)).lr_multiplier == pytest.approx(1.3 * planned)


@pytest.mark.parametrize("flags", [{}, {"ternary": True, "qat": True}, {"accumulate": 2}])
def test_measuring_changes_nothing_of_a_run(flags):
    """Neither statistics of batches nor dropout nor the order of anything."""
    found = []
    for controller, options in (("relative-step", {}), ("trust-ratio", RESTING | {"every": 2})):
        given_options = {"lr_controller": options}
        config = resolve(
            task="digits", hybrid=True, max_steps=8, lr_controller=controller, options=given_options, **flags
        )
        trainer = Trainer.seeded(config)
        ratios = [trainer.step().get("reduction_ratio") for _ in range(8)]
        found.append((trainer.model.state_dict(), ratios))
    (plain, none), (measured, ratios) = found
    assert none == [None] * 8
    assert [ratio is not None for ratio in ratios] == [True, False, True, False] + [False] * 4
    for name, tensor in plain.items():
        assert torch.equal(tensor, measured[name]), name
