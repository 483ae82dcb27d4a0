"""The arena: what is run, what is kept, what the findings say."""

from __future__ import annotations

import dataclasses
import json
import math
from concurrent.futures import Future
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.bench.arena import run as arena_run
from hybridkit.bench.arena import store as stores
from hybridkit.bench.arena.cells import CORE, Cell
from hybridkit.bench.arena.findings import findings, share_to_reach
from hybridkit.bench.arena.methods import BASELINE, METHODS, OURS, RIVALS
from hybridkit.bench.arena.numbers import numbers
from hybridkit.bench.arena.plan import Plan, best_rates, core, quick
from hybridkit.bench.arena.report import Report, save, tables, to_html, to_json
from hybridkit.bench.arena.store import Store
from hybridkit.bench.arena.trials import Record, Trial, run
from hybridkit.bench.machine import this_machine

DIGITS = Cell("digits", "ternary", 20, 32)


def record(loss: float, seconds: float = 1.0) -> Record:
    return Record(loss, 0.5, seconds, ((0, 2.0), (20, loss)), 1.0, 0.25)


def made_up(plan: Plan, of_ours: float, of_others: float) -> dict[Trial, Record]:
    """Every trial of a plan: ours ends at `of_ours` / share, the others at `of_others` times their rate's
    log."""
    trials = [*plan.ours(), *plan.horizons(), *plan.tuning(), *plan.mistakes(), *plan.heat()]
    found = {}
    for t in trials:
        base = of_others if t.method in RIVALS or t.method == BASELINE else of_ours
        found[t] = record((base + (abs(math.log10(t.lr / 3e-3)) if t.method in RIVALS else 0)) / t.share)
    found |= {t: found.get(t, record(of_others)) for t in plan.tuned(best_rates(plan, found))}
    return found


PLAN = Plan([DIGITS, Cell("digits", "fp32", 20, 32)], range(3), shares=(0.5,), misset=(0.1, 10.0))


def test_shares_to_a_loss_are_interpolated_between_runs():
    losses = {0.25: 4.0, 0.5: 2.0, 1.0: 1.0}
    assert share_to_reach(losses, 2.0) == pytest.approx(0.5)
    assert share_to_reach(losses, 1.5) == pytest.approx(math.sqrt(0.5))
    assert share_to_reach(losses, 9.0) == 0.25
    assert share_to_reach(losses, 0.5) == math.inf


@settings(deadline=None)
@given(
    st.dictionaries(st.floats(0.05, 1.0), st.floats(0.1, 10.0) | st.just(math.inf), min_size=1, max_size=6),
    st.floats(0.1, 10.0),
    st.floats(0.1, 10.0),
)
def test_a_lower_loss_never_takes_fewer_steps(losses, one, other):
    low, high = sorted((one, other))
    assert share_to_reach(losses, low) >= share_to_reach(losses, high)
    if min(losses.values()) <= low:
        assert min(losses) <= share_to_reach(losses, low) <= max(losses)


def test_the_best_rate_is_that_of_the_tuning_seeds():
    rates = best_rates(PLAN, made_up(PLAN, 1.0, 2.0))
    assert rates[DIGITS, "AdamW, cosine"] == 3e-3
    assert rates[DIGITS, "Muon, WSD"] == 3e-3


def test_findings_compare_in_pairs():
    records = made_up(PLAN, 1.0, 2.0)
    found = findings(PLAN, records, best_rates(PLAN, records))[0]
    assert found.lower_loss.median == pytest.approx(0.5)
    assert found.against_best.median == pytest.approx(0.5)
    assert found.steps[BASELINE].median == pytest.approx(0.5)  # at half of the steps ours ends at 2.0
    assert found.seconds[BASELINE].median == pytest.approx(0.5)
    assert {s.method for s in found.standings} == {BASELINE, *PLAN.rivals(DIGITS)} | {
        m for m in METHODS if m not in RIVALS
    }
    assert found.mistakes["lr x 0.1"].median == 1.0


def test_numbers_say_met_and_missed():
    for ours, met in ((1.0, True), (4.0, False)):
        records = made_up(PLAN, ours, 2.0)
        rows = list(numbers(findings(PLAN, records, best_rates(PLAN, records))))
        steps = [n for n in rows if n.claim.startswith("steps to the final loss of AdamW, constant")]
        assert [n.met for n in steps] == [met, met]
        assert all(n.met is None for n in rows if n.claim == "constrained steps")


def test_a_diverged_rival_is_no_obstacle():
    records = made_up(PLAN, 1.0, 2.0)
    for trial in list(records):
        if trial.method == "Prodigy":
            records[trial] = Record(math.inf, math.nan, 1.0, ((0, 2.0),))
    report = Report(
        this_machine(),
        PLAN,
        findings(PLAN, records, best_rates(PLAN, records)),
        records,
    )
    assert "diverged" in " ".join(cell for table in tables(report) for row in table.rows for cell in row)
    json.dumps(to_json(report), allow_nan=False)
    page = to_html(report)
    assert page.count("<h2>") == 2
    assert "Prodigy" in page


def test_the_store_keeps_what_was_run(tmp_path):
    kept, trial = Store(tmp_path / "trials.jsonl"), Trial(DIGITS, OURS, 0, lr=0.1)
    assert kept.find(trial) is None
    kept.add(trial, Record(math.inf, math.nan, 2.5, ((0, 1.5),)))
    with kept.path.open("a") as file:
        file.write('{"trial": "half a li')  # as a kill leaves it
    found = Store(kept.path).find(trial)
    assert found is not None
    assert found.loss == math.inf
    assert found.curve == ((0, 1.5),)
    assert Store(kept.path).find(Trial(DIGITS, OURS, 1, lr=0.1)) is None


def test_a_record_of_other_sources_does_not_count(tmp_path, monkeypatch):
    kept, ours, theirs = Store(tmp_path / "t.jsonl"), Trial(DIGITS, OURS, 0), Trial(DIGITS, BASELINE, 0)
    kept.add(ours, record(1.0))
    kept.add(theirs, record(2.0))
    before = stores.sources(False)
    monkeypatch.setattr(stores, "sources", lambda mine: "changed" if mine else before)
    assert kept.find(ours) is None
    assert kept.find(theirs) == record(2.0)


def test_plans_name_methods_that_exist():
    for plan in (core(), quick()):
        trials = {*plan.ours(), *plan.tuning(), *plan.horizons(), *plan.mistakes(), *plan.heat()}
        assert {t.method for t in trials} <= set(METHODS)
        assert {t.cell for t in trials} == set(plan.cells)
    assert "SGD, cosine" not in core().rivals(CORE[0])
    assert len(core(tasks=["text"]).cells) == 2


@pytest.mark.parametrize(
    "method",
    [
        BASELINE,
        OURS,
        "AdamW, WSD, adaptive clipping",
        "AdamW, WSD, global clipping",
        "schedule-free AdamW",
        "Prodigy",
    ],
)
def test_a_trial_trains(method):
    lr = RIVALS[method].grid[2] if method in RIVALS else None
    found = run(Trial(DIGITS, method, 0, lr, share=0.5))
    assert found.curve[0][0] == 0
    assert found.curve[-1][0] == 10
    assert found.loss < found.curve[0][1]
    assert 0 < found.metric <= 1
    assert found.seconds > 0
    assert run(Trial(DIGITS, method, 0, lr, share=0.5)).loss == found.loss


class Here:
    """An executor that works where it is called."""

    def submit(self, call, *arguments):
        done = Future()
        done.set_result(call(*arguments))
        return done


def test_a_whole_arena_and_its_second_run(tmp_path, monkeypatch):
    monkeypatch.setattr(arena_run, "processes", lambda count: nullcontext(Here()))
    cells = [dataclasses.replace(DIGITS, steps=4), Cell("digits", "fp32", 4, 32)]
    plan = Plan(cells, range(2), shares=(0.5,), misset=(10.0,), grid=1)
    ticks: list[str] = []

    def progress(title, total):
        return lambda: ticks.append(title)

    report = arena_run.run_arena(plan, tmp_path / "trials.jsonl", progress)
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len(lines) == len(ticks) == len({json.loads(line)["trial"] for line in lines})
    assert [f.cell for f in report.cells] == cells
    assert {n.met for n in report.numbers} <= {True, False, None}
    written = save(report, tmp_path)
    assert json.loads(written[0].read_text())["cells"][0]["cell"]["task"] == "digits"
    assert "data:image/png;base64" in written[1].read_text()

    ticks.clear()
    again = arena_run.run_arena(plan, tmp_path / "trials.jsonl", progress)
    assert ticks == []
    assert to_json(again)["cells"] == to_json(report)["cells"]
