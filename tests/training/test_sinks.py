"""Metric sinks in a run: what they get, and that none can end or change it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_task
from same_run import assert_same_run, logged

from hybridkit.errors import UsageError
from hybridkit.training.config import TrainConfig, resolve
from hybridkit.training.events import StepDone, Warned
from hybridkit.training.history import read_notes
from hybridkit.training.loop import resume, train
from hybridkit.training.runs import Run, newest_run

TASK = "tiny_task:tiny"
TO_FILE = "sinks_of_mine:ToFile"
TRUSTED = {TASK, TO_FILE}


def config(*sinks: str, **flags: Any) -> TrainConfig:
    common = {"task": TASK, "batch_size": 12, "checkpoint_every": 5, "max_steps": 8}
    return resolve(**common | {"sink": sinks} | flags)


def calls(run: Run, sink: str = TO_FILE) -> list[list[Any]]:
    text = (run.sinks / sink.replace(":", "-") / "calls").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_sink_gets_every_record_of_the_log(tmp_path: Path) -> None:
    run = train(config(TO_FILE), run_dir=tmp_path).run
    first, *between, last = calls(run)
    assert (first, last) == (["open", 0, 0], ["close", True])
    assert [c[:2] for c in between] == [[r["event"], r["step"]] for r in logged(run)]
    names = {name for r in logged(run) if r["event"] == "evaluation" for name in r} - {"event", "step"}
    assert set(next(c[2] for c in between if c[0] == "evaluation")) == names


def test_a_resumed_run_goes_on_in_its_sinks(tmp_path: Path) -> None:
    run = train(config(TO_FILE, keep_checkpoints=99), run_dir=tmp_path).run
    resume(run, step=5, trusted=TRUSTED)
    seen = calls(run)
    begin = seen.index(["open", 5, 8])
    assert [c[1] for c in seen[begin + 1 :] if c[0] == "step"] == [6, 7, 8]


def test_a_sink_that_comes_later_gets_what_was_logged_before(tmp_path: Path) -> None:
    run = train(config(), run_dir=tmp_path).run
    longer = resume(run, max_steps=10, sink=[TO_FILE], trusted=TRUSTED)
    assert [c[1] for c in calls(run) if c[0] == "step"] == list(range(1, 11))
    assert longer.config.sink == run.recorded().sink == [TO_FILE]
    with pytest.raises(UsageError, match=f"sink is '{TO_FILE}', and code that only a file names .* --sink"):
        resume(run, max_steps=11, trusted={TASK})
    again = resume(run, max_steps=11, sink=["none"], trusted={TASK})
    assert again.config.sink == []
    assert calls(run)[-1] == ["close", True]


def test_of_several_sinks_that_a_file_names_each_must_be_named(tmp_path: Path) -> None:
    both = config(TO_FILE, "sinks_of_mine:Drawing")
    run = train(both, run_dir=tmp_path).run
    for trusted in (TRUSTED, {TASK, "sinks_of_mine:Drawing"}):
        with pytest.raises(UsageError, match="code that only a file names"):
            run.config(trusted)
    assert run.config({*TRUSTED, "sinks_of_mine:Drawing"}) == both


def test_no_sink_changes_the_run(tmp_path: Path) -> None:
    flags = {"hybrid": True, "ternary": True, "qat": True, "data_clusters": 3}
    bare = train(config(**flags), run_dir=tmp_path)
    with_sink = train(config("sinks_of_mine:Drawing", **flags), run_dir=tmp_path)
    assert_same_run(bare.run, with_sink.run)


def test_a_failing_sink_is_one_warning(tmp_path: Path) -> None:
    told: list[Any] = []
    run = train(
        config("sinks_of_mine:Gone", TO_FILE, "sinks_of_mine:NeverThere"),
        run_dir=tmp_path,
        on_event=told.append,
    ).run
    warnings = [event.message for event in told if isinstance(event, Warned)]
    assert len(warnings) == 2
    assert "NeverThere failed" in warnings[0]
    assert "SystemExit: log in first" in warnings[0]
    assert "ConnectionError: no route to host" in warnings[1]
    assert [note.text for note in read_notes(run.history_path) if note.what == "warning"] == warnings
    assert calls(run)[-1] == ["close", True]
    assert calls(run, "sinks_of_mine:Gone")[-1][:2] != ["close"]


def test_an_interrupted_run_leaves_its_sinks_open_ended(tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(TO_FILE), run_dir=tmp_path, on_event=stop)
    assert calls(newest_run(tmp_path))[-1] == ["close", False]


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [("tensorboard", "torch.utils.tensorboard", "tensorboard"), ("wandb", "wandb", "wandb"),
     ("mlflow", "mlflow", "mlflow")],
)  # fmt: skip
def test_a_missing_library_is_one_line_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"--sink {name} needs .*: pip install 'hybridkit\[{extra}\]'$"):
        train(config(name), run_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_names_and_options() -> None:
    options = {"metric_sink": {"wandb.project": "p", "tensorboard": {"flush-seconds": 5}}}
    found = resolve(sink=["tensorboard,wandb", " tensorboard "], options=options)
    assert found.sink == ["tensorboard", "wandb"]
    assert found.options == {"metric_sink": {"wandb": {"project": "p"}, "tensorboard": {"flush_seconds": 5}}}
    assert TrainConfig.from_json(json.loads(json.dumps(found.to_json()))) == found
    alone = resolve(sink="wandb", options={"metric_sink": {"project": "p"}})
    assert alone.options == {"metric_sink": {"wandb": {"project": "p"}}}
    assert resolve(sink="none").sink == []


@pytest.mark.parametrize(
    ("sinks", "settings", "message"),
    [
        ("tensorbord", {}, "did you mean 'tensorboard'"),
        ("", {"wandb.project": "p"}, "the run has no --sink"),
        ("wandb,tensorboard", {"project": "p"}, "metric_sink.NAME.OPTION"),
        ("wandb", {"mlflow.experiment": "p"}, "metric_sink.NAME.OPTION"),
        ("wandb", {"projekt": "p"}, "did you mean 'project'"),
        ("tensorboard", {"flush_seconds": "0"}, "flush_seconds='0'"),
        ("wandb", {"mode": "of line"}, "mode='of line'"),
    ],
)
def test_what_does_not_fit_is_one_line(sinks: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(sink=sinks, options={"metric_sink": settings})


assert tiny_task.tiny  # named as text above
