from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybridkit.errors import FileError
from hybridkit.packing.atomic import folder_in_place, sweep, temporary_beside
from hybridkit.training import checkpoint as module
from hybridkit.training.checkpoint import (
    Checkpoint,
    drop_after,
    keep_recent,
    latest_step,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    steps,
)


def make(step: int) -> Checkpoint:
    weight = torch.full((4, 3), float(step))
    return Checkpoint(
        step, {"a.weight": weight, "tied": weight}, {"rng": (1, 2.5, None), "m": {0: torch.ones(2)}}
    )


def test_round_trip(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, make(7))
    loaded = load_checkpoint(folder)
    assert loaded.step == 7
    assert torch.equal(loaded.model["tied"], torch.full((4, 3), 7.0))
    assert loaded.state["rng"] == (1, 2.5, None)
    assert torch.equal(loaded.state["m"][0], torch.ones(2))
    assert latest_step(tmp_path) == 7
    assert set(load_tensors(folder / "model.safetensors")) == {"a.weight", "tied"}


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "foreign"])
def test_damage_is_noticed_and_the_intact_one_named(tmp_path: Path, name: str, damage: str) -> None:
    save_checkpoint(tmp_path, make(3))
    file = save_checkpoint(tmp_path, make(5)) / name
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        middle = len(data) // 2
        data[middle] ^= 1
        damaged = {
            "truncate": bytes(data[:middle]),
            "flip": bytes(data),
            "foreign": b"\x80\x04something else",
        }
        file.write_bytes(damaged[damage])
    with pytest.raises(FileError, match="step 3 beside it is intact: --from 3") as error:
        load_checkpoint(tmp_path / "step-5")
    assert "\n" not in str(error.value)


def test_without_an_intact_one_nothing_is_promised(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"there is no checkpoint manifest here$"):
        load_checkpoint(tmp_path / "step-5")


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("moment", range(12))
def test_killed_at_any_moment_the_previous_checkpoint_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    save_checkpoint(tmp_path, make(1))
    calls = 0

    def fatal(function):  # type: ignore[no-untyped-def]
        def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls > moment:
                raise KilledError
            return function(*args, **kwargs)

        return wrapper

    for name in ("rename", "replace", "fsync"):
        monkeypatch.setattr(os, name, fatal(getattr(os, name)))
    killed = False
    try:
        save_checkpoint(tmp_path, make(2))
    except KilledError:
        killed = True
    monkeypatch.undo()
    step = latest_step(tmp_path)
    assert load_checkpoint(tmp_path / f"step-{step}").step == step
    assert killed or step == 2
    drop_after(tmp_path, step)
    save_checkpoint(tmp_path, make(step + 1))
    assert not list(tmp_path.glob(".step-*.tmp"))


def test_a_step_is_never_overwritten(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1))
    with pytest.raises(FileError, match="saved before"):
        save_checkpoint(tmp_path, make(1))


def test_only_recent_and_wanted_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 20, 300, 4000):
        save_checkpoint(tmp_path, make(step))
    keep_recent(tmp_path, 2, {1})
    assert steps(tmp_path) == [1, 300, 4000]


def test_going_back_forgets_what_came_later(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make(step))
    drop_after(tmp_path, 2)
    assert steps(tmp_path) == [1, 2]
    assert latest_step(tmp_path) == 2
    assert not list(tmp_path.glob(".step-*"))


def test_latest_survives_being_garbled(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(4))
    (tmp_path / "latest").write_bytes(b"\xff\xfe")
    assert latest_step(tmp_path) == 4
    with pytest.raises(FileError, match="no checkpoint"):
        latest_step(tmp_path / "elsewhere")


def test_manifest_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VERSION", 99)
    folder = save_checkpoint(tmp_path, make(1))
    monkeypatch.undo()
    with pytest.raises(FileError, match="checkpoint version 99"):
        load_checkpoint(folder)


def test_an_old_folder_that_a_killed_process_left_stays_until_a_new_one_is_there(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = temporary_beside(tmp_path / "made").name.replace(f".{os.getpid()}-", f".{dead.pid}-")
    left = (tmp_path / name).with_suffix(".old")
    left.mkdir()
    sweep([tmp_path])
    with folder_in_place(tmp_path / "made") as new:
        assert left.is_dir()
        (new / "file").write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    ours = temporary_beside(tmp_path / "step-1")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [
        ours.with_name(f.name.replace(f".{os.getpid()}-", f".{dead.pid}-"))
        for f in (ours, temporary_beside(tmp_path / "latest"))
    ]
    parent = ours.with_name(ours.name.replace(f".{os.getpid()}-", f".{os.getppid()}-"))
    elsewhere = tmp_path / f".latest.{dead.pid}-{'0' * 8}-{'1' * 8}.tmp"
    others = [parent, elsewhere, tmp_path / ".mine.tmp", tmp_path / "latest", ours]
    left[0].mkdir()
    (left[0] / "model.safetensors").write_bytes(b"half")
    for file in (left[1], *others):
        file.write_bytes(b"half")
    temporary_beside(tmp_path / "step-1")  # of the same target
    assert set(tmp_path.iterdir()) == {left[1], *others}
    sweep([tmp_path, tmp_path / "no such folder"])
    assert set(tmp_path.iterdir()) == set(others)
