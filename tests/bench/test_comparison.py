"""The comparison of methods: what is run, what is kept, what the findings say."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hybridkit.bench.convergence import run as running
from hybridkit.bench.convergence.extras import EXTRAS, Extra
from hybridkit.bench.convergence.findings import Findings, best_rivals, findings, rankings, share_to_reach
from hybridkit.bench.convergence.longtail import thinned
from hybridkit.bench.convergence.methods import (
    BALANCED,
    BASELINE,
    COSINE,
    METHODS,
    MUON,
    OURS,
    RIVALS,
    TUNED,
    UNCONSTRAINED,
)
from hybridkit.bench.convergence.numbers import numbers
from hybridkit.bench.convergence.plan import Plan, best_rates, core, quick
from hybridkit.bench.convergence.report import Report, save, setting_table, tables, to_html, to_json
from hybridkit.bench.convergence.settings import CORE, Setting
from hybridkit.bench.convergence.store import trial_store
from hybridkit.bench.convergence.suitable import suited
from hybridkit.bench.convergence.trials import Record, Trial, part_of, run
from hybridkit.bench.machine import this_machine
from hybridkit.bench.overhead import OverheadResult
from hybridkit.bench.statistics import Interval
from hybridkit.errors import FileError, UsageError
from hybridkit.options import describe_options
from hybridkit.registry import registry
from hybridkit.tasks.resolve import make_task
from hybridkit.training.config import resolve
from hybridkit.training.trainer import Trainer

DIGITS = Setting("digits", "ternary", 20, 32)


def trial_of(setting: Setting, method: str, seed: int, lr: float | None = None, **more: float) -> Trial:
    return Trial(setting, METHODS[method], seed, lr, **more)


def record(loss: float, seconds: float = 1.0, error: float | None = None) -> Record:
    return Record(loss, 0.5, seconds, ((0, 2.0), (20, loss)), 1.0, 0.25, error)


def made_up(plan: Plan, of_ours: float, of_others: float) -> dict[Trial, Record]:
    """Every trial of a plan: ours ends at `of_ours` / share, the others at `of_others` times their rate's
    log."""
    trials = [*plan.ours(), *plan.horizons(), *plan.tuning(), *plan.mistakes(), *plan.heat()]
    found = {}
    for t in trials:
        base = of_others if t.method.name in RIVALS or t.method.name == BASELINE else of_ours
        loss = (base + (abs(math.log10(t.lr / 3e-3)) if t.method.name in RIVALS else 0)) / t.share
        found[t] = record(loss, error=base / 10 if t.is_compared else None)
    found |= {t: found.get(t, record(of_others)) for t in plan.tuned(best_rates(plan, found))}
    return found


PLAN = Plan([DIGITS, Setting("digits", "fp32", 20, 32)], range(3), shares=(0.5,), misset=(0.1, 10.0))


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
    assert rates[DIGITS, COSINE] == 3e-3
    assert rates[DIGITS, MUON] == 3e-3


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
    assert found.reached[BASELINE] == 3
    assert found.less_error.median == pytest.approx(0.5)
    assert {s.method: s.error.median for s in found.standings if s.error} == {
        OURS: pytest.approx(0.1),
        UNCONSTRAINED: pytest.approx(0.1),
        BASELINE: pytest.approx(0.2),
    }


def test_ablations_are_for_the_precisions_where_they_make_sense():
    records = made_up(PLAN, 1.0, 2.0)
    ternary, full = findings(PLAN, records, best_rates(PLAN, records))
    assert {s.method for s in ternary.standings} - {s.method for s in full.standings} == {
        "with a learned quantiser",
        "without the quantisation ramp",
        "AdamW, WSD, quantisation ramp",
    }
    assert full.less_error is None


@pytest.mark.parametrize("setting", CORE[:2], ids=str)
def test_every_ablation_changes_something_and_every_method_is_valid(setting):
    """Also where an option is spelled out that is the default."""

    def meaning(method: str) -> object:
        config = trial_of(setting, method, 0).config()
        options = {}
        for kind in ("lr_controller", "optimizer", "constraint", "clusterer", "quantizer"):
            if (name := getattr(config, kind)) is not None:
                known = describe_options(registry().load(kind, name))
                options[kind] = {n: info.default for n, info in known.items()} | config.strategy_options(kind)
        return repr(dataclasses.replace(config, options=options))

    own = core().own(setting)
    assert len({meaning(method) for method in own}) == len(own)


def test_a_loss_that_is_infinite_on_both_sides_is_no_error():
    records = made_up(PLAN, 1.0, 2.0)
    for trial in list(records):
        if trial.method.name in (OURS, BASELINE) and trial.seed == 0:
            records[trial] = Record(math.inf, math.nan, 1.0, ((0, 2.0),))
    found = findings(PLAN, records, best_rates(PLAN, records))[0]
    assert found.lower_loss.low == -math.inf
    assert found.reached[TUNED] == 2


def test_numbers_say_met_and_missed():
    for ours, met in ((1.0, True), (4.0, False)):
        records = made_up(PLAN, ours, 2.0)
        rows = list(numbers(findings(PLAN, records, best_rates(PLAN, records))))
        steps = [n for n in rows if n.claim.startswith("steps to the final loss of AdamW, constant")]
        assert [n.met for n in steps] == [met, met]
        assert all(n.met is None for n in rows if n.claim == "constrained steps")
        errors = [n for n in rows if n.claim.startswith("lower squared relative error")]
        assert [(n.setting, n.met) for n in errors] == [(DIGITS, met)]


def test_the_overhead_has_a_limit_on_text_alone():
    for task, met in (("text", False), ("digits", None)):
        plan = dataclasses.replace(PLAN, settings=[Setting(task, "fp32", 20, 32)])
        records = made_up(plan, 1.0, 2.0)
        time = OverheadResult("fp32", 2, Interval(0.2, 0.1, 0.3), 10.0, 12.0, 8.0, 0.1)
        found = findings(plan, records, best_rates(plan, records), {plan.settings[0]: time})
        [row] = [n for n in numbers(found) if n.claim.startswith("time of controller")]
        assert (row.measured.median, row.met) == (0.2, met)
        report = Report(this_machine(), plan, found, records)
        assert "Time of a step" in [table.title for table in tables(report)]
        assert "12.00" in to_html(report)


def test_a_diverged_rival_is_no_obstacle():
    records = made_up(PLAN, 1.0, 2.0)
    for trial in list(records):
        if trial.method.name == "Prodigy":
            records[trial] = Record(math.inf, math.nan, 1.0, ((0, 2.0),))
    report = Report(
        this_machine(),
        PLAN,
        findings(PLAN, records, best_rates(PLAN, records)),
        records,
    )
    assert "diverged" in " ".join(cell for table in tables(report) for row in table.rows for cell in row)
    document = json.loads(json.dumps(to_json(report), allow_nan=False))
    read = TypeAdapter(list[Findings]).validate_python(document["settings"])
    assert [setting_table(found) for found in read] == [setting_table(found) for found in report.settings]
    assert setting_table(read[0]).rows[-1][0] == "Prodigy"
    page = to_html(report)
    assert page.count("<h2>") == 2
    assert "Prodigy" in page


def test_the_store_keeps_what_was_run(tmp_path):
    kept, trial = trial_store(tmp_path / "trials.jsonl"), trial_of(DIGITS, OURS, 0, lr=0.1)
    assert kept.find(trial) is None
    kept.add(trial, Record(math.inf, math.nan, 2.5, ((0, 1.5),), error=math.inf))
    with kept.path.open("a") as file:
        file.write('{"trial": "half a li')  # as a kill leaves it
    found = trial_store(kept.path).find(trial)
    assert found is not None
    assert found.loss == math.inf
    assert found.error == math.inf
    assert found.curve == ((0, 1.5),)
    again = trial_store(kept.path)
    again.add(trial, record(1.0))  # behind the half line
    assert trial_store(kept.path).find(trial) is not None
    assert len(kept.path.read_text().splitlines()) == 3
    assert trial_store(kept.path).find(trial_of(DIGITS, OURS, 1, lr=0.1)) is None


@pytest.mark.parametrize("line", ['{"trial": "of an older bench"}', '{"key": {}, "record": {}}', "[]", "1"])
def test_a_store_of_something_else_is_one_line(line, tmp_path):
    (tmp_path / "t.jsonl").write_text(f"{line}\n")
    with pytest.raises(FileError, match=r"t\.jsonl, line 1: no result of this bench"):
        trial_store(tmp_path / "t.jsonl")


def test_plans_name_methods_that_exist():
    for plan in (core(), quick(core(task="digits"))):
        trials = {*plan.ours(), *plan.tuning(), *plan.horizons(), *plan.mistakes(), *plan.heat()}
        assert {t.method.name for t in trials} <= set(METHODS)
        assert {t.setting for t in trials} == set(plan.settings)
    assert "SGD, cosine" not in core().rivals(CORE[0])
    assert len(core(task="text").settings) == 2
    assert core().extras == []
    assert core(full=True).extras == list(EXTRAS)
    assert [e.setting.precision for e in core(task="digits", full=True).extras] == ["1-bit"]


def test_a_task_of_ones_own_has_the_length_that_is_asked_for():
    assert core(task="a:b", steps=7, batch_size=3).settings == [
        Setting("a:b", precision, 7, 3) for precision in ("fp32", "ternary")
    ]
    with pytest.raises(UsageError, match="nothing to add to a:b"):
        core(task="a:b", full=True)
    for own in ({"steps": 7}, {"batch_size": 3}):
        with pytest.raises(UsageError, match="of their own"):
            core(task="digits", **own)


def test_a_network_of_convolutions_has_nothing_for_muon():
    plan = suited(core())
    assert {c.task for c in plan.settings if MUON not in plan.rivals(c)} == {"fashion-mnist"}
    assert {c.task for c in plan.settings if "SGD, cosine" in plan.rivals(c)} == {"fashion-mnist"}


def test_the_full_comparison_has_what_was_asked_for():
    names = {str(extra.setting) for extra in EXTRAS}
    assert names == {
        "text (transformer-3m), fp32",
        "text (transformer-3m), ternary",
        "digits, 1-bit",
        "fashion-mnist, 1-bit",
        "text, 1-bit",
        "fashion-mnist with a teacher, ternary",
        "fashion-mnist-long-tailed, fp32",
        "fashion-mnist-long-tailed, ternary",
    }
    for extra in EXTRAS:
        assert extra.like in CORE
        assert (BALANCED in extra.also) == ("long-tailed" in str(extra.setting))


def test_the_best_rivals_go_on_at_their_rates():
    records = made_up(PLAN, 1.0, 2.0)
    for trial in list(records):
        if trial.method.name in (MUON, TUNED) and trial.lr == 3e-3:
            records[trial] = record(0.5)
    rates = best_rates(PLAN, records)
    found = findings(PLAN, records, rates)
    assert sorted(best_rivals(found, DIGITS)) == sorted([TUNED, MUON])
    without = dataclasses.replace(PLAN, unsuitable={DIGITS: [MUON]})
    apart = findings(without, records, rates)
    assert best_rivals(apart, PLAN.settings[1])[0] in (TUNED, MUON)
    assert MUON not in best_rivals(apart, DIGITS)

    setting = Setting("digits", "1-bit", 20, 32)
    extended = dataclasses.replace(PLAN, seeds=(0, 1), extras=[Extra(setting, DIGITS, (BALANCED,))])
    [trials] = extended.further({DIGITS: [MUON]}, rates)
    assert trials[MUON] == [trial_of(setting, MUON, seed, 3e-3) for seed in (0, 1)]
    assert trials[OURS] == [trial_of(setting, OURS, seed) for seed in (0, 1)]
    made = records | {
        t: record(2.0 if t.method.name == OURS else 1.0) for own in trials.values() for t in own
    }
    [ranking] = rankings([trials], made)
    assert ranking.setting == setting
    assert {s.method: (s.ratio.median, s.lr) for s in ranking.standings} == {
        OURS: (1.0, None),
        BALANCED: (0.5, None),
        BASELINE: (0.5, 1e-3),
        MUON: (0.5, 3e-3),
    }
    plan = dataclasses.replace(PLAN, seeds=(0, 1))
    report = Report(this_machine(), plan, findings(plan, made, rates), made, [ranking])
    assert [table.title for table in tables(report)][-1].startswith("digits, 1-bit")
    assert to_html(report).count("<h2>") == 3
    assert to_json(report)["extras"][0]["setting"]["precision"] == "1-bit"


def test_a_long_tail_is_thinned_exponentially_and_always_the_same():
    labels = torch.arange(10).repeat(1_000)
    kept = thinned(labels, 100)
    counts = labels[kept].bincount()
    assert counts[0] == 1_000
    assert counts[9] == 10
    shares = counts[1:] / counts[:-1]
    assert torch.allclose(shares, torch.full((9,), 100 ** (-1 / 9)), rtol=0.05)
    assert torch.equal(kept, thinned(labels, 100))
    assert torch.equal(kept, kept.unique())


def test_the_long_tail_is_in_the_training_data_alone():
    pytest.importorskip("torch")
    from hybridkit.bench.convergence.longtail import fashion_mnist_long_tailed
    from hybridkit.tasks.fashion_mnist import FashionMNIST

    try:
        whole = FashionMNIST().splits()
    except FileError as error:
        pytest.skip(str(error))
    task = fashion_mnist_long_tailed()
    splits = task.splits()
    counts = splits.train[1].bincount()
    assert counts[0] == 100 * counts[9]
    assert torch.equal(splits.validation[0], whole.validation[0])
    for part in (splits.validation, splits.test):  # so that accuracy is balanced accuracy
        assert len(part[1].bincount().unique()) == 1
    assert task.metric == "balanced_accuracy"


def test_a_teacher_is_prepared_once_loaded_by_whom_it_teaches_and_leaves_the_generators_alone(
    tmp_path, monkeypatch
):
    from hybridkit.bench.convergence import teacher

    monkeypatch.setenv("HYBRIDKIT_BENCH_CACHE", str(tmp_path))
    brief = resolve(task="digits", max_steps=2, seed=3)
    monkeypatch.setattr(teacher, "config", lambda: brief)
    monkeypatch.setattr(teacher, "make_task", lambda name: make_task("digits"))
    with pytest.raises(UsageError, match="was not trained yet: hybridkit bench convergence --full"):
        teacher.fashion_mnist()
    trained = Trainer.seeded(brief)
    while not trained.done:
        trained.step()
    teacher.prepare()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    loaded = teacher.fashion_mnist().state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(loaded[name], value) for name, value in trained.model.state_dict().items())


def test_the_teacher_is_a_step_of_its_own_where_a_missing_trial_needs_it(tmp_path, monkeypatch, here):
    from hybridkit.bench.convergence import teacher

    monkeypatch.setenv("HYBRIDKIT_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(teacher, "prepare", lambda: teacher.path().write_bytes(b""))
    titles: list[str] = []

    def progress(title, total):
        titles.append(title)
        return lambda: None

    [taught] = [extra.setting for extra in EXTRAS if extra.setting.teacher]
    running.prepare_teacher([trial_of(DIGITS, OURS, 0)], here, progress)
    assert titles == []
    for _ in range(2):
        running.prepare_teacher([trial_of(taught, OURS, 0)], here, progress)
        assert titles == ["Training the teacher"]


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
    trial = trial_of(dataclasses.replace(DIGITS, steps=10), method, 0, lr)
    found = run(trial)
    assert [step for step, _ in found.curve] == [0, 2, 4, 6, 8, 10]
    assert found.loss < found.curve[0][1]
    assert 0 < found.metric <= 1
    assert found.seconds > 0
    assert run(trial).loss == found.loss


@pytest.mark.parametrize("unranked", [{"share": 0.5}, {"lr": 1e-4}, {"radius": 0.1}])
def test_of_a_shorter_run_and_a_wrong_setting_the_loss_is_measured(unranked):
    trial = trial_of(DIGITS, OURS, 0, **unranked)
    found = run(trial)
    assert not trial.is_ranked
    assert [step for step, _ in found.curve] == [0, trial.steps]
    assert found.loss < found.curve[0][1]
    assert math.isnan(found.metric)


@pytest.mark.parametrize("precision", ["ternary", "1-bit"])
def test_the_quantisation_error_is_that_of_packed_network_and_counterpart(precision):
    from hybridkit.bench.statistics import squared_relative_error
    from hybridkit.quant.convert import convert
    from hybridkit.training.evaluation import outputs
    from hybridkit.training.packed import packed_network

    trial = trial_of(Setting("digits", precision, 6, 32), OURS, 0)
    assert trial.is_compared
    assert not trial_of(trial.setting, OURS, 0, lr=1e-3).is_compared
    networks = []
    for each in (trial, trial.counterpart()):
        trainer = Trainer.seeded(each.config())
        while not trainer.done:
            trainer.step()
        networks.append(trainer)
    quantized, full = networks
    test = full.task.splits().test
    packed = packed_network(quantized.model, convert(quantized.model))
    logits = [outputs(model, full.task, test, batch_size=64).numpy() for model in (packed, full.model)]
    assert run(trial).error == pytest.approx(squared_relative_error(*logits), rel=1e-4)


def test_a_part_of_the_data_is_spread_over_all_of_it():
    x = torch.arange(1_000)
    assert [part.tolist() for part in part_of((x, 2 * x))] == [
        list(range(0, 1_000, 3)),
        list(range(0, 2_000, 6)),
    ]
    assert len(part_of((x[:400],))[0]) == 400


def test_a_whole_comparison_and_its_second_run(tmp_path, monkeypatch, here):
    monkeypatch.setattr(running, "processes", lambda count: nullcontext(here))
    chosen = [dataclasses.replace(DIGITS, steps=4), Setting("digits", "fp32", 4, 32)]
    extras = [Extra(Setting("digits", "1-bit", 4, 32), chosen[0])]
    plan = Plan(chosen, range(1), shares=(0.5,), misset=(10.0,), grid=1, rounds=1, extras=extras)
    ticks: list[str] = []

    def progress(title, total):
        return lambda: ticks.append(title)

    report = running.run_convergence(plan, tmp_path / "trials.jsonl", progress)
    lines = [
        line
        for name in ("trials.jsonl", "overhead.jsonl")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert len(lines) == len(ticks) == len({json.dumps(json.loads(line)["key"]) for line in lines})
    assert [f.setting for f in report.settings] == chosen
    assert [f.setting for f in report.extras] == [extras[0].setting]
    assert all(f.overhead for f in report.settings)
    assert {n.met for n in report.numbers} <= {True, False, None}
    written = save(report, tmp_path)
    assert json.loads(written[0].read_text())["settings"][0]["setting"]["task"] == "digits"
    assert "data:image/png;base64" in written[1].read_text()

    ticks.clear()
    again = running.run_convergence(plan, tmp_path / "trials.jsonl", progress)
    assert ticks == []
    assert to_json(again)["settings"] == to_json(report)["settings"]
