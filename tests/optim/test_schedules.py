"""Schedules by their formulas."""

from __future__ import annotations

import itertools

import pytest

from hybridkit.errors import UsageError
from hybridkit.optim.controllers.schedules import WSD, Constant, Cosine
from hybridkit.optim.protocol import Proposal, TrainingState


def state(step: int, total: int) -> TrainingState:
    return TrainingState(1.0, 1.0, -1, 0.0, 0.0, step, total)


def multipliers(controller, total: int) -> list[float]:
    return [controller.propose(state(step, total)).lr_multiplier for step in range(total + 3)]


def test_constant_leaves_everything():
    assert Constant().propose(state(3, 0)) == Proposal(1.0, None)


def test_cosine():
    m = multipliers(Cosine(Cosine.Options(warmup=0.1, floor=0.2)), 100)
    assert m[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert m[10] == 1.0
    assert m[55] == pytest.approx(0.6)  # halfway between 1 and the floor
    assert m[100:] == pytest.approx([0.2] * 3)
    assert all(a >= b for a, b in itertools.pairwise(m[10:]))


def test_wsd():
    m = multipliers(WSD(WSD.Options(warmup=0.1, decay=0.2, floor=0.1)), 100)
    assert m[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert m[10:80] == [1.0] * 70
    assert m[80] == 1.0
    assert m[90] == pytest.approx(0.55)
    assert m[99] == pytest.approx(0.1 + 0.9 / 20)
    assert m[100:] == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize("controller", [Cosine(), WSD()])
def test_short_runs_are_fine_and_move(controller, total):
    m = multipliers(controller, total)
    assert all(0 <= x <= 1 for x in m)
    assert m[0] > 0


def test_without_warmup_or_decay():
    assert multipliers(WSD(WSD.Options(warmup=0.0, decay=0.0)), 5) == [1.0] * 8
    assert multipliers(Cosine(Cosine.Options(warmup=0.0)), 4)[0] == 1.0


@pytest.mark.parametrize("controller", [Cosine(), WSD()])
def test_the_length_has_to_be_known(controller):
    with pytest.raises(UsageError, match="give max_steps"):
        controller.propose(state(0, 0))


def test_wsd_refuses_more_than_the_whole_run():
    with pytest.raises(UsageError, match="more than 1"):
        WSD(WSD.Options(warmup=0.6, decay=0.6))
