"""Weights go back, and steps get shorter, where samples held back get worse; else nothing happens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import loss_of, mlp, same_bits, values
from torch import nn

from hybridkit.optim.averaged import Averaged
from hybridkit.optim.controllers.probe import Probe
from hybridkit.optim.controllers.relative_step import RelativeStep
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.protocol import Outcome, Proposal, TrainingState, Verdict
from hybridkit.testing.storage import through_checkpoint
from hybridkit.training.probe import held_back

STEPS = 50  # 25 of them with a probe, which is looked at after every fifth


def controller():
    return Probe(Probe.Options(looks=5))


def hybrid(model, chosen):
    return HybridOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), controller=chosen, max_steps=STEPS
    )


def take(model, optimizer, step, probe=None):
    optimizer.zero_grad()
    loss = loss_of(model, step)
    optimizer.observe(loss)
    loss.backward()
    optimizer.step(probe=probe)


@settings(deadline=None)
@given(horizon=st.integers(1, 9), steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_mean_is_a_mean_at_first_and_forgets_then(horizon, steps, seed):
    weights = np.random.default_rng(seed).standard_normal((steps, 3))
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    averaged, expected = Averaged([parameter]), weights[0]
    for n, row in enumerate(weights, start=1):
        parameter.data.copy_(torch.from_numpy(row))
        averaged.follow(horizon)
        if n > 1:
            expected = expected + max(1 / horizon, 1 / n) * (row - expected)
    np.testing.assert_allclose(averaged.mean[0].numpy(), expected, atol=1e-12)
    if steps <= horizon:
        np.testing.assert_allclose(expected, weights.mean(0), atol=1e-12)
    with averaged.in_place():
        np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_array_equal(parameter.detach().numpy(), weights[-1])


def test_the_verdicts():
    judge = Probe().judge
    assert judge(2.0) is Verdict.BEST
    assert judge(2.09) is Verdict.NEITHER
    assert judge(2.11) is Verdict.WORSE
    assert judge(2.0) is Verdict.BEST
    assert judge(math.nan) is Verdict.WORSE
    assert judge(-1.0) is Verdict.BEST  # losses may be negative
    assert judge(-0.96) is Verdict.NEITHER
    assert judge(-0.9) is Verdict.WORSE


def told(probe, ratio):
    outcome = Outcome(1.0, 0.9, Proposal(1.0), 0.1, False, ratio)
    probe.feedback(TrainingState(1.0, 1.0, -1, 0.0, 0.0, 9, max_steps=STEPS), outcome)
    return probe.factor


def test_the_ratio_moves_the_factor_within_the_bound_of_the_probe():
    probe = Probe()
    probe.judge(1.0)
    assert [told(probe, 0.9), told(probe, 0.9)] == pytest.approx([1.3, 1.69])
    probe.judge(2.0)
    assert (probe.factor, probe.bound) == pytest.approx((0.845, 0.845))
    assert told(probe, 0.9) == probe.bound  # longer is what was worse
    assert told(probe, 0.0) == pytest.approx(0.65 * 0.845)
    probe.judge(0.9)
    assert probe.bound == pytest.approx(1.5 * 0.845)
    assert [told(probe, 0.9) for _ in range(9)][-1] == probe.bound
    for _ in range(20):
        probe.judge(2.0)
    assert probe.factor == 0.01


def test_it_looks_as_often_as_it_says_in_its_part_of_the_run():
    proposals = [
        controller().propose(TrainingState(1.0, 1.0, -1, 0.0, 0.0, step, max_steps=STEPS))
        for step in range(STEPS)
    ]
    assert [n for n, p in enumerate(proposals, start=1) if p.wants_probe] == [5, 10, 15, 20, 25]
    assert [n for n, p in enumerate(proposals, start=1) if p.averaged_over] == list(range(1, 26))
    unknown = controller().propose(TrainingState(1.0, 1.0, -1, 0.0, 0.0, 3))
    assert not unknown.wants_probe


@pytest.mark.parametrize("given", [False, True])
def test_without_a_probe_and_with_one_that_falls_it_is_the_plan(given):
    falling = iter(range(100, 0, -1))
    probe = falling.__next__ if given else None
    plain, probed = mlp(), mlp()
    planned, judged = hybrid(plain, RelativeStep()), hybrid(probed, controller())
    for step in range(STEPS):
        take(plain, planned, step)
        take(probed, judged, step, probe)
    assert same_bits(values(plain), values(probed))


def test_where_it_rises_the_weights_are_the_best_mean_again():
    model, looked = mlp(), []
    optimizer = hybrid(model, controller())
    losses = iter([1.0, 0.5, 0.51, 0.6, 0.4])

    def probe():
        looked.append(values(model))  # the mean, in place of the weights
        return next(losses)

    steps = []
    for step in range(STEPS):
        take(model, optimizer, step, probe)
        steps.append(dict(optimizer.last_step))
        if "probe_loss" in steps[-1]:
            assert any(same_bits(values(model), mean) for mean in looked[1:2]) == steps[-1]["went_back"]
    seen = {n: (s["probe_loss"], s["went_back"]) for n, s in enumerate(steps, 1) if "probe_loss" in s}
    assert seen == {5: (1.0, False), 10: (0.5, False), 15: (0.51, False), 20: (0.6, True), 25: (0.4, False)}
    plan = [
        RelativeStep().propose(TrainingState(1.0, 1.0, -1, 0.0, 0.0, n, max_steps=STEPS)) for n in (22, 30)
    ]
    for n, factor, planned in zip((22, 30), (0.5, 0.5), plan, strict=True):
        assert steps[n]["lr_multiplier"] == pytest.approx(factor * planned.lr_multiplier)
    assert optimizer.state_dict()["hybrid"]["averaged"] == {"count": 0, "mean": [], "best": []}


def test_a_probe_that_is_not_always_there():
    model = mlp()
    optimizer = hybrid(model, controller())
    for step in range(STEPS):
        take(model, optimizer, step, (lambda: float(step)) if step != 12 else None)  # noqa: B023
        if step > 12:  # what was remembered has gone, and the first loss was the best
            assert not optimizer.last_step.get("went_back", False)


@settings(max_examples=10, deadline=None)
@given(cut=st.integers(0, 30))
def test_it_goes_on_where_it_was(cut):
    def probe(model):
        return lambda: float(loss_of(model, 1_000))

    model, twin = mlp(), mlp()
    optimizer, resumed = hybrid(model, controller()), hybrid(twin, controller())
    for step in range(cut):
        take(model, optimizer, step, probe(model))
    saved = through_checkpoint({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    for step in range(5):  # whatever it did before is forgotten
        take(twin, resumed, 90 + step, probe(twin))
    twin.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for step in range(cut, 36):
        take(model, optimizer, step, probe(model))
        take(twin, resumed, step, probe(twin))
        assert same_bits(values(model), values(twin))
        assert optimizer.last_step == resumed.last_step


def test_a_state_of_other_weights_is_refused():
    averaged = Averaged([nn.Parameter(torch.ones(3))])
    averaged.follow(1)
    with pytest.raises(ValueError, match="of other parameters"):
        Averaged([nn.Parameter(torch.ones(4))]).load_state_dict(averaged.state_dict())


@given(samples=st.integers(0, 9_000), trained=st.integers(1, 10**6), looks=st.integers(1, 50))
def test_how_many_samples_are_held_back(samples, trained, looks):
    held = held_back(samples, 0, trained=trained, looks=looks)
    if samples < 16:
        assert not len(held)
        return
    assert 8 <= len(held) <= 256
    assert len(held) <= max(samples / 8, min(samples / 4, 64), 8)
    assert len(held) * looks <= max(0.05 * 3 * trained, 8 * looks)
    assert sorted(set(held.tolist())) == held.tolist()
    assert held[-1] < samples
