"""The schedule of relative steps: what is given is corrected, longer runs take shorter steps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hybridkit.optim.controllers.relative_step import RelativeStep
from hybridkit.optim.protocol import Announced, Proposal, TrainingState, announced


def state(step: int = 0, **changes) -> TrainingState:
    values = {"current_loss": 1.0, "gradient_magnitude": 2.0, "cluster_id": -1, "loss_trend": 0.0}
    return TrainingState(**(values | {"gradient_variance": 0.0, "step_number": step} | changes))


@pytest.mark.parametrize(
    ("max_steps", "expected"),
    [(1, 0.08), (168, 0.08), (300, 0.06), (600, 0.0424264), (1_200, 0.03), (10**9, 0.03)],
)
@pytest.mark.parametrize("given", [0.006, 0.06, 0.6])
def test_relative_steps_are_shorter_in_longer_runs(given, max_steps, expected):
    controller = RelativeStep(RelativeStep.Options(warmup=0.0, decay=0.0))
    multiplier = controller.propose(state(relative_step=given, max_steps=max_steps)).lr_multiplier
    low, high = controller.bounds
    assert low <= multiplier <= high
    assert given * multiplier == pytest.approx(expected, rel=1e-2)


def test_other_steps_do_not_depend_on_the_length():
    controller = RelativeStep(RelativeStep.Options(warmup=0.0, decay=0.0))
    assert controller.propose(state(max_steps=10_000)).lr_multiplier == 1


def test_where_the_end_is_unknown_the_mean_of_the_shape_is_planned():
    options = RelativeStep.Options(warmup=0.1, decay=0.6)
    seen = [state(step, max_steps=1000) for step in range(1000)]
    shape = [RelativeStep(options).propose(each).lr_multiplier for each in seen]
    unknown = RelativeStep(options).propose(state(max_steps=0, relative_step=0.06)).lr_multiplier
    assert unknown == pytest.approx(np.mean(shape), abs=2e-3)
    assert RelativeStep(options).propose(state(max_steps=0)).lr_multiplier == 1  # a rate that is no mere unit


def test_it_needs_no_loss_and_leaves_the_radius():
    controller = RelativeStep(RelativeStep.Options(warmup=0.0, decay=0.0))
    assert announced(controller) == Announced()
    assert controller.propose(state(current_loss=math.nan, trust_radius=1.0)) == Proposal(1.0, None)


def test_a_schedule_of_the_callers_counts():
    """Only the first learning rate is corrected; what a scheduler makes of it later is wanted."""
    controller = RelativeStep(RelativeStep.Options(warmup=0.0, decay=0.0))
    first = controller.propose(state(0, relative_step=0.01)).lr_multiplier
    assert controller.propose(state(1, relative_step=0.001)).lr_multiplier == first == pytest.approx(6.0)
    other = RelativeStep(RelativeStep.Options(warmup=0.0, decay=0.0))
    other.load_state_dict(controller.state_dict())
    assert other.propose(state(2, relative_step=0.005)).lr_multiplier == first
