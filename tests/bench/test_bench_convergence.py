"""What the whole bench makes of the comparison's findings, and the machinery of its runs."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest

from hybridkit.bench.convergence.methods import BASELINE, COSINE, MUON, OURS, RIVALS, TUNED
from hybridkit.bench.convergence.summary import curve, summarise
from hybridkit.bench.pool import Runs, processes


def own(converged, row):
    plan, trials, rates, *_ = converged
    setting = next(s for s in plan.settings if s.precision == row.precision)
    lr = rates[setting, row.method] if row.method in RIVALS else None
    return [trials.results[plan.trial(setting, row.method, seed, lr)] for seed in plan.seeds]


def test_every_method_starts_from_the_same_weights(converged):
    *_, result = converged
    assert result.same_start
    assert {(r.precision, r.method) for r in result.methods} == {
        (precision, method)
        for precision in ("ternary", "fp32")
        for method in (OURS, BASELINE, TUNED, COSINE, MUON)
    }


def test_another_start_is_noticed(converged):
    plan, trials, _, found, result = converged
    records = dict(trials.results)
    trial = next(iter(records))
    first = records[trial]
    records[trial] = dataclasses.replace(first, curve=((0, first.curve[0][1] + 1e-6), *first.curve[1:]))
    assert not summarise(plan, found, records, result.metric).same_start


def test_a_row_is_that_of_its_runs(converged):
    result = converged[-1]
    for row in result.methods:
        runs = own(converged, row)
        [base] = [r for r in result.methods if (r.precision, r.method) == (row.precision, TUNED)]
        pairs = zip(runs, own(converged, base), strict=True)
        assert row.final_loss.median == pytest.approx(statistics.median(r.loss for r in runs))
        assert row.lower_loss.median == pytest.approx(
            statistics.median(1 - o.loss / b.loss for o, b in pairs)
        )
        assert row.curve.steps[-1] == result.steps == 5
        assert row.curve.median[-1] == pytest.approx(row.final_loss.median)
        assert (row.active_rate is not None) == (row.fewer_steps is None) == (row.method == OURS)
        assert (row.method in RIVALS) == bool(row.tuning)


def test_the_baseline_is_the_tuned_one_and_no_lower_than_itself(converged):
    result = converged[-1]
    assert result.baseline == TUNED
    for row in result.methods:
        if row.method == TUNED:
            assert row.lower_loss.low == row.lower_loss.high == 0.0
            assert f"{row.lr:g}" == min(row.tuning, key=row.tuning.get)


def test_steps_saved_are_one_minus_the_share_that_was_needed(converged):
    *_, found, result = converged
    for row in (r for r in result.methods if r.method != OURS):
        [setting] = [f for f in found if f.setting.precision == row.precision]
        needed = setting.steps[row.method]
        assert (row.fewer_steps.median, row.fewer_steps.low) == (1 - needed.median, 1 - needed.high)
        assert row.reached == setting.reached[row.method]
        assert row.fewer_steps.median == -math.inf or row.reached >= 1


def test_a_curve_that_broke_off_is_left_out():
    found = curve([((0, 2.0), (5, 1.0)), ((0, 9.0),), ((0, 4.0), (5, 3.0))])
    assert found.steps == [0, 5]
    assert found.median == [3.0, 2.0]


def test_a_comparison_is_the_same_when_it_is_repeated(quantized):
    plan, runs, _ = quantized
    trial = plan.trial(OURS, 0)
    assert runs.measure(trial) == runs.results[trial]


def test_the_constrained_share_is_what_the_run_logs(converged, tmp_path):
    from hybridkit.training.loop import train

    plan, trials, *_ = converged
    trial = plan.trial(plan.settings[0], OURS, 0)
    result = train(trial.config(), run_dir=tmp_path)
    assert result.summary.constraint_activation_rate == pytest.approx(trials.results[trial].active)


def test_results_come_in_the_order_asked_for_and_ticks_count_what_was_measured():
    ticks = []
    runs = Runs(lambda spec: spec * 10, None)
    assert list(runs.get([3, 1, 3], lambda: ticks.append(1)).items()) == [(3, 30), (1, 10)]
    assert runs.get([1, 2], lambda: ticks.append(1)) == {1: 10, 2: 20}
    assert len(ticks) == 3
    assert runs.missing([2, 4, 4]) == [4]


def test_what_is_kept_is_not_measured_again_and_hears_of_the_rest():
    known = {1: 10}

    class Kept:
        def find(self, job):
            return known.get(job)

        def add(self, job, record):
            known[job] = record

    measured = []
    runs = Runs(lambda spec: measured.append(spec) or spec * 10, None, Kept())
    assert runs.missing([1, 2]) == [2]
    assert runs.get([1, 2]) == {1: 10, 2: 20}
    assert measured == [2]
    assert known == {1: 10, 2: 20}


def test_processes_give_what_this_process_gives():
    with processes(2) as executor:
        assert Runs(math.sqrt, executor).get([4.0, 9.0, 16.0]) == {4.0: 2.0, 9.0: 3.0, 16.0: 4.0}
        with pytest.raises(ValueError, match=r"math domain|nonnegative"):
            Runs(math.sqrt, executor).get([-1.0])
