from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_task
import torch
from same_run import assert_same_run, logged

from hybridkit.errors import FileError, HybridkitError, InterruptedRun, UsageError
from hybridkit.training.checkpoint import steps
from hybridkit.training.config import TrainConfig, resolve
from hybridkit.training.events import EpochDone, Event, StepDone, Warned
from hybridkit.training.loop import TrainResult, resume, train
from hybridkit.training.runs import find_run, newest_run
from hybridkit.training.trainer import DivergedError, Trainer

TASK = "tiny_task:tiny"
HYBRID = {"hybrid": True, "ternary": True, "qat": True, "batch_size": 12, "checkpoint_every": 5}
PLAIN: dict[str, Any] = {"batch_size": 12, "checkpoint_every": 5}


def config(**flags: Any) -> TrainConfig:
    return resolve(**{"task": TASK, "epochs": 3, "data_clusters": 3, **flags})


class Stop:
    """Sends this process a signal after a number of steps."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.step, self.number, self.sent = step, number, False

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone) and event.step == self.step and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


@pytest.fixture
def _hears_interrupts() -> Iterator[None]:
    """Who starts the tests in the background of a shell has SIGINT ignored, and a run then leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_hears_interrupts")
@pytest.mark.parametrize("flags", [PLAIN, HYBRID], ids=["plain", "hybrid"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_and_resumed_equals_never_stopped(
    tmp_path: Path, flags: dict[str, Any], number: signal.Signals
) -> None:
    whole = train(config(**flags), run_dir=tmp_path / "a")
    with pytest.raises(InterruptedRun, match="after step 8; saved"):
        train(config(**flags), run_dir=tmp_path / "b", on_event=Stop(8, number))
    run = newest_run(tmp_path / "b")
    assert run.checkpoint().step == 8
    torch.rand(3)  # whatever happened in between must not matter
    resumed = resume(run, trusted={TASK})
    assert_same_run(whole.run, resumed.run)
    assert resumed.test == whole.test
    assert resumed.summary == whole.summary
    if whole.packed:
        assert whole.packed.path.read_bytes() == resumed.packed.path.read_bytes()


def test_going_back_to_an_earlier_checkpoint_repeats_the_run(tmp_path: Path) -> None:
    flags = {**HYBRID, "keep_checkpoints": 10}
    whole = train(config(**flags), run_dir=tmp_path / "a")
    again = train(config(**flags), run_dir=tmp_path / "b")
    resumed = resume(again.run, step=5, trusted={TASK})
    assert_same_run(whole.run, resumed.run)


def test_two_runs_of_one_seed_are_equal_and_another_seed_is_not(tmp_path: Path) -> None:
    one, two = (train(config(**HYBRID, max_steps=9), run_dir=tmp_path) for _ in range(2))
    assert one.run.path != two.run.path
    assert_same_run(one.run, two.run)
    assert one.final_loss != train(config(**HYBRID, max_steps=9, seed=1), run_dir=tmp_path).final_loss


def test_a_finished_run_goes_on_with_another_end(tmp_path: Path) -> None:
    first = train(config(**PLAIN, max_steps=6), run_dir=tmp_path)
    assert first.steps == 6
    longer = resume(first.run, max_steps=11, trusted={TASK})
    assert longer.steps == 11
    assert first.run.config({TASK}).max_steps == 11
    assert [r["step"] for r in logged(first.run) if r["event"] == "step"] == list(range(1, 12))


def test_checkpoints_come_with_epochs_and_every_few_steps(tmp_path: Path) -> None:
    run = train(config(batch_size=12, checkpoint_every=4, keep_checkpoints=99), run_dir=tmp_path).run
    assert {4, 6, 8, 12, 16, 18} <= set(steps(run.checkpoints))
    few = train(config(batch_size=12, checkpoint_every=1, keep_checkpoints=2), run_dir=tmp_path)
    assert set(steps(few.run.checkpoints)) == {17, 18, few.best_step}


def test_what_is_told_and_logged(tmp_path: Path) -> None:
    told: list[Event] = []
    result = train(config(**HYBRID), run_dir=tmp_path, on_event=told.append)
    epochs = [event for event in told if isinstance(event, EpochDone)]
    records = logged(result.run)
    steps_logged = [r for r in records if r["event"] == "step"]
    assert [e.epoch for e in epochs] == [1, 2, 3]
    assert epochs[0].loss == pytest.approx(np.mean([r["loss"] for r in steps_logged[:6]]))
    assert epochs[0].lr == steps_logged[5]["learning_rate"]
    assert epochs[0].trust_radius == steps_logged[5]["trust_radius"]
    wanted = {
        "loss",
        "learning_rate",
        "lr_multiplier",
        "trust_radius",
        "update_magnitude",
        "gradient_magnitude",
    }
    assert wanted | {"constraint_active", "cluster_id"} <= set(steps_logged[0])
    summary = result.summary
    assert summary is not None
    assert summary.total_steps == 18
    assert summary.avg_lr_multiplier == pytest.approx(np.mean([r["lr_multiplier"] for r in steps_logged]))
    assert summary.constraint_activation_rate == np.mean([r["constraint_active"] for r in steps_logged])
    evaluations = [r for r in records if r["event"] == "evaluation"]
    assert ["max_diff" in r for r in evaluations] == [False, False, True]  # the ramp ends with step 15 of 18
    assert 0 <= evaluations[-1]["mean_diff"] <= evaluations[-1]["max_diff"] < 1e-4


def test_evaluation_every_few_steps(tmp_path: Path) -> None:
    result = train(config(**PLAIN, eval_every=4), run_dir=tmp_path)
    assert [r["step"] for r in logged(result.run) if r["event"] == "evaluation"] == [4, 8, 12, 16, 18]
    assert result.validation["loss"] == logged(result.run)[-3]["validation_loss"]


def test_not_a_number_stops_the_run_and_names_the_way_back(tmp_path: Path) -> None:
    flags = {**PLAIN, "task": "tiny_task:exploding", "hybrid": True, "sampler": "per-cluster"}
    with pytest.raises(
        DivergedError, match=r"nan at step 7 \(data cluster [0-2]\).*last good checkpoint is step \d"
    ) as e:
        train(config(**flags), run_dir=tmp_path)
    assert e.value.exit_code == 1
    run = newest_run(tmp_path)
    assert run.checkpoint().step < 7
    assert all(torch.isfinite(t).all() for t in run.checkpoint().model.values())


def test_a_controller_that_leaves_its_bounds_is_what_the_error_says(tmp_path: Path) -> None:
    with pytest.raises(HybridkitError, match="WildController proposed") as error:
        train(config(**PLAIN, lr_controller="tiny_task:WildController"), run_dir=tmp_path)
    assert not isinstance(error.value, DivergedError)
    with pytest.raises(
        DivergedError, match=r"the gradient is not finite at step 1 .*no checkpoint was written yet"
    ):
        train(config(**PLAIN, lr_controller="constant", task="tiny_task:steep"), run_dir=tmp_path)


def test_weights_that_exploded_are_never_saved(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"no checkpoint was written yet|last good checkpoint"):
        train(config(**PLAIN, optimizer="sgd", lr=1e30), run_dir=tmp_path)
    run = newest_run(tmp_path)
    for step in steps(run.checkpoints):
        assert all(torch.isfinite(t).all() for t in run.checkpoint(step).model.values())


def test_ternary_alone_quantises_after_training(tmp_path: Path) -> None:
    result = train(config(**PLAIN, ternary=True), run_dir=tmp_path)
    assert result.packed is not None
    assert result.packed.test.error > 1e-4
    full = train(config(**PLAIN), run_dir=tmp_path)
    assert full.packed is None
    assert full.final_loss == result.final_loss


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"ternary": True},
        {"quantizer": "nbit"},
        {"ternary": True, "learnable_scale": True},
        {"target_bits": 2.0},
        {"quantize_all": True},
        {"activations": "float"},
    ],
)
def test_what_trains_is_what_is_packed(tmp_path: Path, flags: dict[str, Any]) -> None:
    result = train(config(**PLAIN, qat=True, **flags), run_dir=tmp_path)
    assert result.packed is not None
    assert result.packed.test.error < 1e-10
    assert result.packed.test.packed["accuracy"] == pytest.approx(result.test["accuracy"], abs=1e-6)
    task, model = result.run.load_model(trusted={TASK})
    inputs = task.splits().test[0]
    again, packed = model(inputs), result.run.packed()
    assert packed.metadata["task"] == TASK
    assert packed.metadata["inputs"] == [{"name": "input", "shape": [1, 8], "dtype": "float32"}]
    assert again.shape == (24, 3)


def test_a_ramp_reaches_the_quantised_weights(tmp_path: Path) -> None:
    result = train(config(**PLAIN, qat=True, ternary=True, ramp=8 / 18), run_dir=tmp_path)
    evaluations = [r for r in logged(result.run) if r["event"] == "evaluation"]
    assert ["max_diff" in r for r in evaluations] == [False, True, True]
    assert evaluations[-1]["max_diff"] < 1e-4
    assert result.best_step > 8  # what is better on the ramp is not what will be packed


def test_no_module_is_imported_because_a_file_names_it(tmp_path: Path) -> None:
    run = train(config(**PLAIN, max_steps=1), run_dir=tmp_path).run
    with pytest.raises(UsageError, match=f"say --task {TASK}"):
        run.load_model()
    with pytest.raises(UsageError, match="never imported"):
        resume(run)


def test_runs_are_found_by_folder_name_and_checkpoint(tmp_path: Path) -> None:
    run = train(config(**PLAIN, max_steps=1), run_dir=tmp_path).run
    newer = train(config(**PLAIN, max_steps=1), run_dir=tmp_path).run
    assert newest_run(tmp_path) == newer
    assert find_run(run.path) == (run, None)
    assert find_run(run.path.name, tmp_path) == (run, None)
    assert find_run(run.checkpoints / "step-1") == (run, 1)
    with pytest.raises(FileError, match="there is no run here"):
        find_run("nothing", tmp_path)
    with pytest.raises(FileError, match="no packed model"):
        run.packed()
    (run.path / "config.json").write_text("{}")
    with pytest.raises(FileError, match="not a hybridkit run"):
        run.config()
    (run.path / "config.json").write_text("{")
    with pytest.raises(FileError, match="truncated or corrupted"):
        run.config()
    with pytest.raises(FileError, match="there are no runs here"):
        newest_run(tmp_path / "empty")


def test_other_data_are_refused_before_anything_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(config(**PLAIN, max_steps=2), run_dir=tmp_path).run
    before = run.metrics_path.read_bytes()
    splits = tiny_task.blobs()
    splits.test[0][0, 0] += 1
    monkeypatch.setattr(tiny_task, "blobs", lambda: splits)
    with pytest.raises(FileError, match="the data have changed"):
        resume(run, max_steps=3, trusted={TASK})
    assert run.metrics_path.read_bytes() == before


def test_another_machine_is_a_warning(tmp_path: Path) -> None:
    run = train(config(**PLAIN, max_steps=2), run_dir=tmp_path).run
    about = run.about()
    about["environment"]["torch"] = "1.0"
    run._write(about)
    told: list[Event] = []
    result: TrainResult = resume(run, max_steps=3, trusted={TASK}, on_event=told.append)
    assert result.steps == 3
    assert any(isinstance(e, Warned) and "torch 1.0 -> " in e.message for e in told)


def numpy_state() -> str:
    return str(np.random.get_state())  # noqa: NPY002


def test_building_a_trainer_seeds_nothing_unless_asked() -> None:
    torch.manual_seed(11)
    before = random.getstate(), numpy_state()
    first = Trainer(config(**PLAIN)).model.state_dict()["0.weight"]
    assert (random.getstate(), numpy_state()) == before
    torch.manual_seed(12)
    assert not torch.equal(Trainer(config(**PLAIN)).model.state_dict()["0.weight"], first)
    ours, again = (Trainer.seeded(config(**PLAIN)).model.state_dict()["0.weight"] for _ in range(2))
    assert torch.equal(ours, again)
    assert random.getstate() == random.Random(0).getstate()
