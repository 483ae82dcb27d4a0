"""One training run of the arena: what it is, and what is kept of it."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybridkit.bench.arena.cells import Cell
from hybridkit.bench.arena.methods import METHODS

if TYPE_CHECKING:
    from hybridkit.training.config import TrainConfig

POINTS = 5  # evaluations along a run


@dataclass(frozen=True, slots=True)
class Trial:
    """Equal trials give equal records on one machine, seconds aside.

    lr, radius: None takes the default of `train`. share: of the cell's steps; schedules end with the run.
    """

    cell: Cell
    method: str
    seed: int
    lr: float | None = None
    share: float = 1.0
    radius: float | None = None

    @property
    def steps(self) -> int:
        """How many it takes."""
        return max(round(self.share * self.cell.steps), 1)

    def key(self) -> str:
        """Its name in the store."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def config(self) -> TrainConfig:
        """As `train` would run it, on one thread."""
        from hybridkit.training.config import resolve

        method = METHODS[self.method]
        flags = {**self.cell.flags(self.steps), **method.flags}
        return resolve(
            seed=self.seed,
            lr=self.lr,
            initial_trust_radius=self.radius,
            threads=1,
            options=method.options,  # type: ignore[arg-type]
            **flags,
        )


@dataclass(frozen=True, slots=True)
class Record:
    """What a trial came to; a run that diverged has an infinite loss.

    loss: on the validation data after the last step. metric: the task's own, on the test data. curve: (step,
    validation loss). seconds: of training, what is done once before the first step (clustering) included,
    evaluation not. multiplier: its mean; active: share of the steps that the constraint shortened.
    """

    loss: float
    metric: float
    seconds: float
    curve: tuple[tuple[int, float], ...]
    multiplier: float | None = None
    active: float | None = None


def run(trial: Trial) -> Record:
    """Train and measure."""
    from hybridkit.training.trainer import DivergedError, Trainer

    config = trial.config()
    trainer = Trainer(config)
    spent = trainer.setup_seconds
    curve = [(0, trainer.evaluate()["loss"])]
    every = max(trial.steps // POINTS, 1)
    try:
        while not trainer.done:
            started = time.perf_counter()
            trainer.step()
            spent += time.perf_counter() - started
            step = trainer.progress.step
            if trainer.done or (step % every == 0 and trial.steps - step >= every):
                curve.append((step, trainer.evaluate()["loss"]))
    except DivergedError:
        return Record(math.inf, math.nan, spent, tuple(curve))
    loss = curve[-1][1]
    progress, hybrid = trainer.progress, config.uses_hybrid_optimizer
    return Record(
        loss=loss if math.isfinite(loss) else math.inf,
        metric=trainer.evaluate("test")[trainer.task.metric],
        seconds=spent,
        curve=tuple(curve),
        multiplier=progress.multiplier_sum / progress.step if hybrid else None,
        active=progress.active_steps / progress.step if config.constraint is not None else None,
    )


def to_json(record: Record) -> dict[str, Any]:
    """Plain values; what is not finite becomes None."""
    values = dataclasses.asdict(record)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def from_json(values: dict[str, Any]) -> Record:
    """What `to_json` made."""
    loss, metric = (math.inf if values["loss"] is None else values["loss"]), values["metric"]
    return Record(
        loss=loss,
        metric=math.nan if metric is None else metric,
        seconds=values["seconds"],
        curve=tuple((int(step), float(value)) for step, value in values["curve"]),
        multiplier=values["multiplier"],
        active=values["active"],
    )
