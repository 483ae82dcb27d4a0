"""Anybody's method among the rivals: how it is written, tuned, kept and shown."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.bench.convergence import run as running
from hybridkit.bench.convergence.custom import custom_methods, parse_grid
from hybridkit.bench.convergence.extras import Extra
from hybridkit.bench.convergence.identity import identity, key, version_of
from hybridkit.bench.convergence.methods import ADAM_GRID, COSINE, METHODS, MUON, OURS, TUNED
from hybridkit.bench.convergence.plan import Plan, core
from hybridkit.bench.convergence.report import save, tables
from hybridkit.bench.convergence.settings import Setting
from hybridkit.bench.convergence.trials import Trial
from hybridkit.cli import run
from hybridkit.errors import UsageError
from hybridkit.training.config import resolve

TASK = "bench_tiny_task:tiny"
NADAM = "NAdam, cosine=optimizer:torch.optim:NAdam,lr_controller:cosine,optimizer.momentum_decay=0.01"
PLUGIN = Path(__file__).parents[2] / "plugins" / "hybridkit-prodigy" / "src"


def test_text_and_table_say_the_same():
    [text] = custom_methods([NADAM], {}, (1e-3,))
    table = {
        "optimizer": "torch.optim:NAdam",
        "lr-controller": "cosine",
        "grid": [1e-3],
        "options": {"optimizer": {"momentum_decay": "0.01"}},
    }
    [read] = custom_methods([], {"NAdam, cosine": table}, (5.0,))
    assert dataclasses.asdict(text) == dataclasses.asdict(read)
    assert text.custom
    assert not text.ours
    assert custom_methods([NADAM], {})[0].grid == ADAM_GRID


def test_a_comma_inside_brackets_is_no_end():
    [method] = custom_methods(["x=optimizer:torch.optim:NAdam,optimizer.betas=(0.8, 0.9)"], {})
    assert method.options == {"optimizer": {"betas": "(0.8, 0.9)"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "expected NAME=KIND:STRATEGY"),
        ("x=", "expected NAME=KIND:STRATEGY"),
        ("=optimizer:sgd", "a name needs letters"),
        ("a\x1bb=optimizer:sgd", "no control characters"),
        ("hybrid=optimizer:sgd", "the name is taken"),
        ("x=optimizer:sdg", "did you mean 'sgd'"),
        ("x=optimiser:sgd", "did you mean 'optimizer'"),
        ("x=task:digits", "is no part of a method"),
        ("x=optimizer:torch.optim:Nope", "has no 'Nope'"),
        ("x=optimizer:no_such_module:Nope", "no module 'no_such_module'"),
        ("x=optimizer:os:getcwd", "method 'x': "),
        ("x=optimizer:torch.optim:NAdam,optimizer.foo=3", "no option 'foo'"),
        ("x=lr_controller:wsd,lr_controller.warmup=7", "less than or equal to 1"),
        ("x=constraint:l2,lr_controller.warmup=1", "the run has none"),
        ("x=optimizer.momentum=1", "nothing is said of it"),
    ],
)
def test_what_is_no_method_is_one_line(text, message):
    with pytest.raises(UsageError, match=message) as error:
        custom_methods([text], {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "table",
    [
        3,
        {},
        {"optimizer": 3},
        {"optimizer": "sgd", "options": 3},
        {"optimizer": "sgd", "options": {"optimizer": 3}},
        {"optimizer": "sgd", "grid": 3},
        {"optimizer": "sgd", "grid": []},
        {"optimizer": "sgd", "grid": [1e-3, 1e-3]},
    ],
)
def test_a_table_that_is_no_method_is_a_usage_error(table):
    with pytest.raises(UsageError, match="method 'x': "):
        custom_methods([], {"x": table})


def test_two_methods_of_one_name_are_a_mistake():
    with pytest.raises(UsageError, match="the name is taken"):
        custom_methods(["x=optimizer:sgd", "x=optimizer:muon"], {})


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, unique=True))
def test_a_grid_is_read_as_it_is_written(rates):
    assert parse_grid(",".join(map(repr, rates))) == tuple(sorted(rates))


@pytest.mark.parametrize("text", ["", "1e-3,", "a", "0", "-1", "inf", "nan", "1,1"])
def test_what_is_no_grid_is_a_usage_error(text):
    with pytest.raises(UsageError, match="a grid is a list"):
        parse_grid(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--method", "x=optimizer:no"],
        ["--method", "hybrid=optimizer:sgd"],
        ["--method", "x=optimizer:sgd", "--grid", "0"],
        ["--grid", "1e-3"],
    ],
)
def test_the_command_ends_with_2(arguments, capsys, tmp_path):
    assert run(["bench", "convergence", *arguments, "--out", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("hybridkit: error: ")
    assert not (tmp_path / "out").exists()
    assert run(["bench", "quantization", *arguments]) == 2


def test_it_is_tuned_kept_and_shown_beside_the_rivals(tmp_path, monkeypatch, here):
    monkeypatch.syspath_prepend(PLUGIN)
    pytest.importorskip("prodigyopt")
    monkeypatch.setattr(running, "processes", lambda count: nullcontext(here))
    custom = custom_methods(
        [NADAM, "theirs=optimizer:hybridkit_prodigy.optimizer:Prodigy"],
        {},
        (1e-3, 3e-2),
    )
    ternary = Setting(TASK, "ternary", 4, 32)
    plan = Plan(
        [ternary],
        range(2),
        shares=(0.5,),
        misset=(10.0,),
        among=(TUNED, COSINE),
        ablations=False,
        rounds=0,
        extras=[Extra(Setting(TASK, "1-bit", 4, 32), ternary)],
        custom=custom,
    )
    report = running.run_convergence(plan, tmp_path / "trials.jsonl", lambda title, count: lambda: None)
    for found in report.everything:
        rows = {s.method: s for s in found.standings}
        for method in custom:
            assert rows[method.name].custom
            assert rows[method.name].lr in (1e-3, 3e-2)
            assert rows[method.name].loss.median > 0
    assert set(rows) >= {"NAdam, cosine", "theirs", OURS}
    [found] = report.settings
    assert list(found.standings[-1].spread) == [1e-3, 3e-2]
    assert "NAdam, cosine" in found.steps
    for table in list(tables(report))[1:]:
        assert {"NAdam, cosine", "theirs"} <= {row[0] for row in table.rows}
    page = save(report, tmp_path)[1].read_text()
    assert "NAdam, cosine" in page
    lines = [json.loads(line)["key"] for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert any(line.get("optimizer", "").startswith(":NAdam@") for line in lines)

    def nothing(title, count):
        raise AssertionError(title)

    again = running.run_convergence(plan, tmp_path / "trials.jsonl", nothing)
    assert again.settings == report.settings


def test_it_joins_the_rivals_of_every_setting_that_it_suits():
    custom = custom_methods([NADAM, "q=quantizer:ternary-learned"], {})
    plan = core(custom=custom)
    assert all("NAdam, cosine" in plan.rivals(setting) for setting in plan.settings)
    assert {s.precision for s in plan.settings if "q" in plan.rivals(s)} == {"ternary"}
    assert plan.rates("NAdam, cosine") == ADAM_GRID
    assert plan.method(MUON) is METHODS[MUON]


# --- what a stored trial goes by


def test_a_key_says_what_is_not_usual_and_nothing_of_where_code_lies():
    said = json.loads(Trial(Setting("digits", "ternary", 20, 32), METHODS[MUON], 1, 3e-3).key())
    assert said.pop("torch")
    assert said == {
        "task": "digits",
        "batch_size": 32,
        "max_steps": 20,
        "seed": 1,
        "lr": 3e-3,
        "optimizer": "muon",
        "lr_controller": "wsd",
        "qat": True,
        "quantizer": "ternary-absmean",
        "activations": "int8",
        "measured": "all",
    }


def test_a_raised_version_voids_what_used_it_and_nothing_else(monkeypatch):
    from hybridkit.optim.optimizers.muon import Muon

    setting = Setting("digits", "fp32", 20, 32)
    muon, plain = (Trial(setting, METHODS[name], 0, 1e-3) for name in (MUON, TUNED))
    before = muon.key(), plain.key()
    identity.cache_clear()
    monkeypatch.setattr(Muon, "version", 2, raising=False)
    assert plain.key() == before[1]
    assert json.loads(muon.key())["optimizer"] == "muon@2"
    identity.cache_clear()
    monkeypatch.undo()
    assert muon.key() == before[0]
    from hybridkit.training.trainer import Trainer

    monkeypatch.setattr(Trainer, "version", 2, raising=False)
    assert json.loads(plain.key())["trainer"] == "2"


def test_a_changed_default_is_no_old_trial():
    plain = resolve(task="digits", max_steps=3)
    changed = dataclasses.replace(plain, weight_decay=0.0)
    assert key(plain) != key(changed)
    assert json.loads(key(changed))["weight_decay"] == 0.0
    assert key(dataclasses.replace(plain, threads=2, eval_every=1)) == key(plain)


def test_somebodys_code_goes_by_its_text_unless_it_carries_a_version(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "import torch\nclass Mine(torch.optim.SGD): pass\n"
    for name in ("mine_here", "mine_moved"):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "mine_changed.py").write_text(text + "# changed\n")
    (tmp_path / "mine_versioned.py").write_text(text.replace("pass", "version = 4"))
    here, moved, changed, versioned = (
        identity("optimizer", f"mine_{name}:Mine") for name in ("here", "moved", "changed", "versioned")
    )
    assert here == moved != changed
    assert here.startswith(":Mine@")
    assert versioned == ":Mine@4"
    assert version_of(object(), own=False)
    assert identity("optimizer", "adamw") == "adamw"
