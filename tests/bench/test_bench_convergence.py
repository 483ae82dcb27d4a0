"""The runs of the convergence bench and what is computed from them."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest

from hybridkit.bench.convergence import Plan, compare
from hybridkit.bench.pool import Runs
from hybridkit.bench.runs import ARMS, BASELINE, HYBRID, UNTUNED, RunSpec
from hybridkit.errors import HybridkitError, UsageError


def test_every_arm_starts_from_the_same_weights_for_the_same_number_of_steps(trained):
    _, runs, _, convergence, _ = trained
    assert convergence.same_start
    by_seed = {}
    for spec, record in runs.results.items():
        by_seed.setdefault(spec.seed, set()).add(record.initial)
        assert record.steps[-1] == convergence.steps
        assert record.steps[0] == record.seconds[0] == 0
    assert [len(found) for found in by_seed.values()] == [1, 1]
    assert by_seed[0] != by_seed[1]


def test_the_baseline_takes_the_rate_with_the_least_median_validation_loss(trained):
    plan, runs, rates, convergence, _ = trained
    for precision in plan.precisions:
        medians = {
            lr: statistics.median(
                runs.results[RunSpec(plan.task, BASELINE, precision, seed, 1, lr)].losses[-1]
                for seed in plan.seeds
            )
            for lr in plan.rates
        }
        assert rates[precision] == min(medians, key=medians.get)
        assert convergence.tuning[precision] == {f"{lr:g}": loss for lr, loss in medians.items()}
    used = {(a.precision, a.arm): a.lr for a in convergence.arms}
    for (precision, arm), lr in used.items():
        assert lr == (1e-3 if arm in (HYBRID, UNTUNED) else rates[precision])


def test_arms_differ_in_what_they_add_and_in_nothing_else():
    base = RunSpec("digits", BASELINE, "ternary", 0, 1, 1e-3).config()
    changed = {
        arm: {
            f.name
            for f in dataclasses.fields(base)
            if getattr(RunSpec("digits", arm, "ternary", 0, 1, 1e-3).config(), f.name)
            != getattr(base, f.name)
        }
        for arm in ARMS
    }
    assert changed == {
        "adamw": set(),
        "adamw, default lr": set(),
        "adamw + schedule": {"lr_controller"},
        "adamw + clustering": {"clusterer", "sampler"},
        "hybrid": {"hybrid", "optimizer", "lr_controller", "clusterer", "constraint"},
    }


def test_the_summary_of_an_arm_is_that_of_its_runs(trained):
    plan, runs, rates, convergence, _ = trained
    for arm in convergence.arms:
        own = [runs.results[plan.run(arm.arm, arm.precision, seed, rates)] for seed in plan.seeds]
        base = [runs.results[plan.run(BASELINE, arm.precision, seed, rates)] for seed in plan.seeds]
        assert arm.final_loss.median == pytest.approx(statistics.median(r.losses[-1] for r in own))
        lower = [1 - o.losses[-1] / b.losses[-1] for o, b in zip(own, base, strict=True)]
        assert arm.lower_loss.median == pytest.approx(statistics.median(lower))
        assert arm.reached == sum(min(o.losses) <= b.losses[-1] for o, b in zip(own, base, strict=True))
        assert arm.curve.median[-1] == pytest.approx(arm.final_loss.median)
        assert (arm.active_rate is not None) == (arm.arm == HYBRID)


def test_the_baseline_is_neither_faster_nor_lower_than_itself(trained):
    for arm in trained[3].arms:
        if arm.arm == BASELINE:
            assert arm.faster_steps.median == arm.lower_loss.high == 0.0
            assert arm.reached == 2


def test_runs_that_are_known_are_not_run_again(trained):
    plan, runs, rates, convergence, _ = trained
    known = Runs(lambda spec: pytest.fail(f"{spec} was run again"), None)
    known.results = runs.results
    again = compare(plan, known, rates, convergence.tuning, lambda: pytest.fail("ticked"))
    assert again == convergence


def test_a_run_is_the_same_when_it_is_repeated(trained):
    _, runs, *_ = trained
    spec = next(spec for spec in runs.results if spec.arm == HYBRID and spec.precision == "ternary")
    again = runs.measure(spec)
    assert again.losses == runs.results[spec].losses
    assert again.logits.tobytes() == runs.results[spec].logits.tobytes()


def test_the_constrained_share_is_what_the_run_logs(trained, tmp_path):
    from hybridkit.training.loop import train

    _, runs, *_ = trained
    spec = next(spec for spec in runs.results if spec.arm == HYBRID and spec.precision == "ternary")
    result = train(spec.config(), run_dir=tmp_path)
    assert result.summary.constraint_activation_rate == pytest.approx(runs.results[spec].active_rate)
    assert result.validation["loss"] == runs.results[spec].losses[-1]


def test_an_unknown_task_is_a_usage_error():
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        RunSpec("digit", BASELINE, "fp32", 0, 1).config()


def test_results_come_in_the_order_asked_for_and_ticks_count_what_was_measured():
    ticks = []
    runs = Runs(lambda spec: spec * 10, None)
    assert list(runs.get([3, 1, 3], lambda: ticks.append(1)).items()) == [(3, 30), (1, 10)]
    assert runs.get([1, 2], lambda: ticks.append(1)) == {1: 10, 2: 20}
    assert len(ticks) == 3
    assert runs.missing([2, 4, 4]) == [4]


def test_processes_give_what_this_process_gives():
    from hybridkit.bench.pool import processes

    with processes(2) as executor:
        assert Runs(math.sqrt, executor).get([4.0, 9.0, 16.0]) == {4.0: 2.0, 9.0: 3.0, 16.0: 4.0}
        with pytest.raises(ValueError, match=r"math domain|nonnegative"):
            Runs(math.sqrt, executor).get([-1.0])


def test_curves_of_different_lengths_are_refused(trained):
    plan, runs, rates, convergence, _ = trained
    broken = Runs(runs.measure, None)
    broken.results = dict(runs.results)
    spec = plan.run(HYBRID, "ternary", 1, rates)
    record = broken.results[spec]
    broken.results[spec] = dataclasses.replace(record, steps=[s + 1 for s in record.steps])
    with pytest.raises(HybridkitError, match="different steps"):
        compare(Plan(plan.task, (0, 1), 1, plan.rates), broken, rates, convergence.tuning, lambda: None)
