"""Run folders: where a run keeps its configuration, log, checkpoints and packed model.

runs/digits-20260131-120000-s0/
  config.json            resolved configuration, environment, where the data came from
  metrics.jsonl          what was logged
  history.jsonl          what happened: starts, interruptions, warnings
  sinks/                 what metric sinks keep
  checkpoints/           see checkpoint.py
  teacher.safetensors    the network that the run began with, under --teacher self
  assets/                what belongs to a pretrained network beside its weights
  model.hk.safetensors   the packed model, once a quantised run has ended
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.atomic import atomic_file, sweep
from hybridkit.sources.protocol import check_named
from hybridkit.training.checkpoint import Checkpoint, latest_step, load_checkpoint, load_tensors, step_of
from hybridkit.training.config import TrainConfig, named_targets
from hybridkit.training.files import read_json, to_json
from hybridkit.training.state import write_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybridkit.packing.model import PackedModel
    from hybridkit.tasks.protocol import Task

FORMAT = "hybridkit-run"
VERSION = 1


def runs_root(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds run folders: `given`, else HYBRIDKIT_RUNS, else `runs`."""
    return Path(given or os.environ.get("HYBRIDKIT_RUNS") or "runs")


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder; nothing is read before it is asked for."""

    path: Path

    @classmethod
    def create(cls, root: Path, config: TrainConfig, about: Mapping[str, Any]) -> Run:
        """A new folder under `root`, named after task, time and seed; never one that exists.

        `about` (environment, data) is recorded beside the configuration.
        """
        now = datetime.datetime.now(datetime.UTC)
        task = re.sub(r"[^A-Za-z0-9.-]+", "-", config.task)
        name = f"{task}-{now:%Y%m%d-%H%M%S}-s{config.seed}"
        for attempt in range(1, 10_000):
            path = root / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                if not path.is_dir():
                    raise FileError(f"{root}: runs cannot be kept here, it is not a folder") from None
            except OSError as error:
                raise FileError(f"{path}: cannot make the run folder ({error.strerror})") from None
        run = cls(path)
        run._write({"created": now.isoformat(), **about, "config": config.to_json()})
        return run

    def sweep(self) -> None:
        """Remove what killed processes left here half written."""
        sweep([self.path, self.checkpoints])

    @property
    def metrics_path(self) -> Path:
        """The log."""
        return self.path / "metrics.jsonl"

    @property
    def history_path(self) -> Path:
        """What happened."""
        return self.path / "history.jsonl"

    @property
    def sinks(self) -> Path:
        """The folder of what metric sinks keep."""
        return self.path / "sinks"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def assets(self) -> Path:
        """What belongs to a pretrained network beside its weights: see hybridkit/pretrained/assets.py."""
        return self.path / "assets"

    def keep_assets(self, model: nn.Module) -> None:
        """Keep configuration and tokenizer of the pretrained network that `model` was made of, if it was."""
        from hybridkit.pretrained import is_pretrained, open_pretrained
        from hybridkit.pretrained.assets import assets_of

        config = self.recorded()
        if config.model is not None and is_pretrained(config.model):
            found = open_pretrained(config.model, trust_remote_code=config.trust_remote_code)
            assets_of(found, model).save(self.assets)

    def own(self, config: TrainConfig) -> TrainConfig:
        """`config` with what the run keeps of its pretrained network in place of that, which may be gone."""
        return dataclasses.replace(config, model=str(self.assets)) if self.assets.is_dir() else config

    @property
    def packed_path(self) -> Path:
        """Where the packed model is, once there is one."""
        return self.path / "model.hk.safetensors"

    @property
    def teacher_path(self) -> Path:
        """Where a run that learns from its own start keeps that."""
        return self.path / "teacher.safetensors"

    def keep_teacher(self, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights of the run's own start, once: to resume, when their origin may be gone."""
        with atomic_file(self.teacher_path) as file:
            write_tensors(Path(file.name), weights)

    def with_teacher(self, checkpoint: Checkpoint) -> Checkpoint:
        """`checkpoint` with the weights that `keep_teacher` kept, if it did."""
        if not self.teacher_path.exists():
            return checkpoint
        return dataclasses.replace(checkpoint, teacher=load_tensors(self.teacher_path))

    def about(self) -> dict[str, Any]:
        """The whole of config.json. Raises FileError where it is missing or damaged."""
        about = read_json(self.path / "config.json", "run configuration")
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise FileError(f"{self.path}: not a hybridkit run folder")
        if about.get("version") != VERSION:
            raise FileError(
                f"{self.path}: run version {about.get('version')!r}; this hybridkit reads {VERSION}"
            )
        if not all(isinstance(about.get(name, {}), dict) for name in ("environment", "data")):
            raise FileError(f"{self.path}: the run configuration is damaged")
        return about

    def recorded(self) -> TrainConfig:
        """The run's configuration, to look at."""
        return TrainConfig.from_json(self.about().get("config"))

    def config(self, trusted: Container[str] = ()) -> TrainConfig:
        """The run's configuration, to act on.

        No module is imported because a file names it: where the configuration names code as
        package.module:attribute, that text must be in `trusted`, or UsageError says which flag repeats it.
        Likewise for the code of a pretrained network (`Code.remote`).
        """
        config = self.recorded()
        self.check(config, trusted)
        return config

    def check(self, config: TrainConfig, trusted: Container[str]) -> None:
        """Raise UsageError where `config`, out of this run's file, names code that is not in `trusted`."""
        check_named(named_targets(config), trusted, f"{self.path}: the run's")
        self._check_remote(config, trusted)

    def _check_remote(self, config: TrainConfig, trusted: Container[str]) -> None:
        if config.trust_remote_code and not getattr(trusted, "remote", False):
            raise UsageError(
                f"{self.path}: the run's network brings code of its own; say --trust-remote-code"
            )

    def amend(self, config: TrainConfig) -> None:
        """Record a changed configuration, as a resumed run with another end has."""
        self._write({**self.about(), "config": config.to_json()})

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of `step`, or the latest. Raises FileError where it is missing or damaged."""
        step = latest_step(self.checkpoints) if step is None else step
        return load_checkpoint(self.checkpoints / f"step-{step}")

    def load_model(self, step: int | None = None, trusted: Container[str] = ()) -> tuple[Task, nn.Module]:
        """The run's task, and its model in evaluation mode with the weights of a checkpoint.

        The model holds fake-quantised layers where the run trained quantised ones. Of the code that the run
        names these need the task, the model and the quantizer alone; `trusted`: see `config`.
        """
        from hybridkit.training.network import restore_network

        config = self.recorded()
        needed = {n: t for n, t in named_targets(config).items() if n in ("task", "model", "quantizer")}
        check_named(needed, trusted, f"{self.path}: the run's")
        self._check_remote(config, trusted)
        return restore_network(self.own(config), self.checkpoint(step))

    def packed(self) -> PackedModel:
        """The packed model. Raises FileError where the run has none (yet)."""
        from hybridkit.packing.model import PackedModel

        if not self.packed_path.exists():
            raise FileError(f"{self.path}: no packed model here; was the run quantised, and did it finish?")
        return PackedModel.load(self.packed_path)

    def _write(self, about: Mapping[str, Any]) -> None:
        with atomic_file(self.path / "config.json") as file:
            file.write(to_json({"format": FORMAT, "version": VERSION, **about}))


def find_run(source: str | os.PathLike[str], root: Path | None = None) -> tuple[Run, int | None]:
    """The run that `source` means, and the step where it is one checkpoint of it.

    `source` is a run folder, a checkpoint folder in one, the name of a run under `root`, or a folder of runs,
    of which the newest is taken. Raises FileError where there is none.
    """
    root = runs_root(root)
    for path in (Path(source), root / source):
        if (path / "config.json").is_file():
            return Run(path), None
        step = step_of(path.name)
        if step is not None and (path / "manifest.json").is_file():
            return Run(path.parent.parent), step
    with contextlib.suppress(FileError):
        return newest_run(Path(source)), None
    raise FileError(f"{source}: there is no run here, nor one of that name in {root}")


def sweep_runs(root: Path) -> None:
    """Remove what killed processes left half written in any run under `root`."""
    for folder in root.glob("*/"):
        Run(folder).sweep()


def newest_run(root: Path | None = None) -> Run:
    """The run that was started last under `root`. Raises FileError where there is none."""
    root = runs_root(root)
    created: list[tuple[str, str]] = []
    for entry in root.iterdir() if root.is_dir() else ():
        try:
            created.append((str(Run(entry).about().get("created")), entry.name))
        except FileError:
            continue  # something else lies here
    if not created:
        raise FileError(f"{root}: there are no runs here; hybridkit train makes one")
    return Run(root / max(created)[1])


def with_end(config: TrainConfig, epochs: int | None, max_steps: int | None) -> TrainConfig:
    """`config` with another end, where one is given."""
    if epochs is None and max_steps is None:
        return config
    return dataclasses.replace(config, epochs=epochs, max_steps=max_steps)
