"""Checkpoints: everything a run needs to go on, in a folder that appears whole or not at all.

    checkpoints/
      step-100/
        model.safetensors   the model's state dict, by its own names (readable by any safetensors tool)
        state.safetensors   the other tensors: optimizer, controller, sampler, random states
        state.json          the rest of the state; refers to the tensors by name
        manifest.json       format, step, SHA-256 of the three files
      latest                the name of the newest one

A checkpoint is written to a temporary folder, synced and renamed; `latest` is replaced afterwards. A process
that is killed at any moment leaves the previous checkpoint and `latest` intact.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from hybridkit.errors import FileError
from hybridkit.packing.atomic import atomic_file, remove, sync, temporary_beside
from hybridkit.training.files import read_json, sha256, to_json, write_synced
from hybridkit.training.state import flatten, unflatten, write_tensors

FORMAT = "hybridkit-checkpoint"
VERSION = 2
MODEL, STATE_TENSORS, STATE, MANIFEST = (
    "model.safetensors",
    "state.safetensors",
    "state.json",
    "manifest.json",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory: the model's state dict, and the nested state of everything else.

    teacher: the state dict of a teacher that is the run's own start (--teacher self). It never changes, so
    it is no part of the folder; the run keeps it once (`Run.keep_teacher`).
    """

    step: int
    model: dict[str, Tensor]
    state: dict[str, Any]
    teacher: dict[str, Tensor] | None = None


def save_checkpoint(root: Path, checkpoint: Checkpoint) -> Path:
    """Write `root/step-N`, then point `root/latest` at it; returns the folder.

    Raises FileError where that step was saved before.
    """
    folder = root / f"step-{checkpoint.step}"
    if folder.exists():
        raise FileError(f"{folder}: this step was saved before")
    temporary = temporary_beside(folder)
    try:
        temporary.mkdir(parents=True)
        _write(temporary, checkpoint)
        os.rename(temporary, folder)
    except OSError as error:
        raise FileError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        remove(temporary)
    sync(root)
    point_latest(root, checkpoint.step)
    return folder


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    tensors, rest = flatten(checkpoint.state)
    write_tensors(folder / MODEL, checkpoint.model)
    write_tensors(folder / STATE_TENSORS, tensors)
    write_synced(folder / STATE, to_json(rest))
    files = {name: sha256(folder / name) for name in (MODEL, STATE_TENSORS, STATE)}
    manifest = {"format": FORMAT, "version": VERSION, "step": checkpoint.step, "files": files}
    write_synced(folder / MANIFEST, to_json(manifest))
    sync(folder)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises FileError, one line, where it is missing, truncated, corrupted or something else; the line names
    the newest intact checkpoint beside it, if there is one.
    """
    try:
        return _load(folder)
    except FileError as error:
        step = step_of(folder.name)
        intact = next(
            (s for s in reversed(steps(folder.parent)) if s != step and _is_intact(folder.parent, s)), None
        )
        if intact is None:
            raise
        raise FileError(f"{error}; step {intact} beside it is intact: --from {intact}") from None


def steps(root: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    if not root.is_dir():
        return []
    return sorted(step for entry in root.iterdir() if (step := step_of(entry.name)) is not None)


def latest_step(root: Path) -> int:
    """The step that `latest` names. Raises FileError where there is no checkpoint."""
    try:
        step = step_of((root / "latest").read_text().strip())
    except (OSError, UnicodeDecodeError):
        step = None
    if step is not None and (root / f"step-{step}").is_dir():
        return step
    known = steps(root)
    if not known:
        raise FileError(f"{root}: there is no checkpoint here")
    return known[-1]


def point_latest(root: Path, step: int) -> None:
    """Replace `latest` atomically."""
    with atomic_file(root / "latest") as file:
        file.write(f"step-{step}\n".encode())


def drop_after(root: Path, step: int) -> None:
    """Forget what came after `step`; `latest` comes first."""
    point_latest(root, step)
    _remove(root, (s for s in steps(root) if s > step))


def keep_recent(root: Path, count: int, also: Iterable[int]) -> None:
    """Delete all but the newest `count` checkpoints and those of the steps in `also`."""
    wanted = {*steps(root)[-count:], *also}
    _remove(root, (s for s in steps(root) if s not in wanted))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises FileError where it is not one, or is truncated."""
    try:
        return dict(safetensors.torch.load_file(path))
    except FileNotFoundError:
        raise FileError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path}: not a safetensors file, or truncated ({reason})") from None


def _load(folder: Path) -> Checkpoint:
    manifest = read_json(folder / MANIFEST, "checkpoint manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FileError(f"{folder}: not a hybridkit checkpoint")
    if manifest.get("version") != VERSION:
        raise FileError(
            f"{folder}: checkpoint version {manifest.get('version')!r}; this hybridkit reads {VERSION}"
        )
    files = manifest.get("files")
    if not isinstance(files, Mapping):
        raise FileError(f"{folder}: the checkpoint manifest is corrupted")
    for name in (MODEL, STATE_TENSORS, STATE):
        try:
            digest = sha256(folder / name)
        except OSError:
            raise FileError(f"{folder}: {name} is missing from the checkpoint") from None
        if digest != files.get(name):
            raise FileError(f"{folder}: {name} is truncated or corrupted (its SHA-256 differs)")
    step = manifest.get("step")
    if type(step) is not int or step_of(folder.name) not in (None, step):
        raise FileError(f"{folder}: the manifest says step {step!r}")
    state = unflatten(load_tensors(folder / STATE_TENSORS), read_json(folder / STATE, "checkpoint state"))
    if not isinstance(state, dict):
        raise FileError(f"{folder}: the checkpoint's state is not a table")
    return Checkpoint(step, load_tensors(folder / MODEL), state)


def _is_intact(root: Path, step: int) -> bool:
    try:
        _load(root / f"step-{step}")
    except FileError:
        return False
    return True


def step_of(name: str) -> int | None:
    """The step that a folder of this name is the checkpoint of."""
    match = re.fullmatch(r"step-([0-9]{1,18})", name)
    return int(match.group(1)) if match else None


def _remove(root: Path, unwanted: Iterable[int]) -> None:
    for step in list(unwanted):
        # Renamed first: a folder that is half deleted must not look like a checkpoint.
        doomed = temporary_beside(root / f"step-{step}")
        os.rename(root / f"step-{step}", doomed)
        remove(doomed)
