"""One training run of the arena: what it is, and what is kept of it."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hybridkit.bench.arena.cells import Cell
from hybridkit.bench.arena.methods import BASELINE, METHODS, OURS, UNCONSTRAINED, is_ours

if TYPE_CHECKING:
    from hybridkit.tasks.protocol import Batch
    from hybridkit.training.config import TrainConfig
    from hybridkit.training.trainer import Trainer

POINTS: Final = 5  # of a curve, after its start
GLANCE: Final = 400  # samples at most, evenly spaced, where all of them would take too long
TWINS: Final = (OURS, UNCONSTRAINED, BASELINE)  # compared with their full-precision twins, if quantised


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

    @property
    def is_ours(self) -> bool:
        """Whether it uses what is ours."""
        return is_ours(self.method)

    @property
    def is_ranked(self) -> bool:
        """Whether it stands beside other methods; shorter runs and wrong settings are about final losses."""
        return self.share == 1 and self.radius is None and (self.lr is None or not self.is_ours)

    @property
    def has_twin(self) -> bool:
        """Whether the same is trained in full precision as well, to measure the quantisation error."""
        as_given = self.lr is None and self.is_ranked
        return self.cell.precision != "fp32" and self.method in TWINS and as_given

    def twin(self) -> Trial:
        """The same in full precision."""
        return dataclasses.replace(self, cell=dataclasses.replace(self.cell, precision="fp32"))

    def key(self) -> str:
        """Its name in the store. What a cell does not say is left out, as old records have it."""
        cell = {k: v for k, v in dataclasses.asdict(self.cell).items() if v is not None}
        twin = {"twin": True} if self.has_twin else {}
        return json.dumps({**dataclasses.asdict(self), "cell": cell, **twin}, sort_keys=True)

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
    validation loss), on the way on a part of the data. Of a trial that is not ranked there is no metric
    (NaN), and the curve has two ends only. seconds: of the processor for training, what is done
    once before the first step (clustering) included, evaluation not. multiplier: its mean; active: share of
    the steps that the constraint shortened. error: ||logits(packed) - logits(twin)||^2 / ||logits(twin)||^2
    on the test data, or a part of them, where there is a twin.
    """

    loss: float
    metric: float
    seconds: float
    curve: tuple[tuple[int, float], ...]
    multiplier: float | None = None
    active: float | None = None
    error: float | None = None


def run(trial: Trial) -> Record:
    """Train and measure."""
    from hybridkit.training.trainer import DivergedError, Trainer

    config = trial.config()
    trainer = Trainer.seeded(config)
    spent = trainer.setup_seconds
    curve = [(0, glance(trainer))]
    every = max(trial.steps // POINTS, 1) if trial.is_ranked else trial.steps
    try:
        while not trainer.done:
            started = time.process_time()  # one thread: the wall clock of a machine that does nothing else
            trainer.step()
            spent += time.process_time() - started
            step = trainer.progress.step
            if step == trial.steps:
                curve.append((step, trainer.evaluate()["loss"]))
            elif step % every == 0 and trial.steps - step >= every:
                curve.append((step, glance(trainer)))
    except DivergedError:
        return Record(math.inf, math.nan, spent, tuple(curve))
    loss = curve[-1][1]
    progress, hybrid = trainer.progress, config.uses_hybrid_optimizer
    return Record(
        loss=loss if math.isfinite(loss) else math.inf,
        metric=trainer.evaluate("test")[trainer.task.metric] if trial.is_ranked else math.nan,
        seconds=spent,
        curve=tuple(curve),
        multiplier=progress.multiplier_sum / progress.step if hybrid else None,
        active=progress.active_steps / progress.step if config.constraint is not None else None,
        error=quantisation_error(trial, trainer) if trial.has_twin else None,
    )


def glance(trainer: Trainer) -> float:
    """The loss on a part of the validation data."""
    from hybridkit.training.evaluation import evaluate
    from hybridkit.training.trainer import evaluation_weights

    data = some(trainer.task.splits().validation)
    with evaluation_weights(trainer.optimizer):
        found = evaluate(trainer.model, trainer.task, data, batch_size=trainer.config.batch_size)
    return found["loss"]


def some(data: Batch) -> Batch:
    """GLANCE of the samples at most, evenly spaced."""
    return tuple(tensor[:: math.ceil(len(data[0]) / GLANCE)] for tensor in data)


def quantisation_error(trial: Trial, trained: Trainer) -> float:
    """Train the twin of `trial` and compare; infinite where the twin diverges."""
    from hybridkit.quant.convert import convert
    from hybridkit.training.evaluation import compare
    from hybridkit.training.packed import packed_twin
    from hybridkit.training.trainer import DivergedError, Trainer

    packed = packed_twin(trained.model, convert(trained.model))
    twin = Trainer.seeded(trial.twin().config())
    try:
        while not twin.done:
            twin.step()
    except DivergedError:
        return math.inf
    test = some(twin.task.splits().test)
    return compare(twin.model, packed, twin.task, test, batch_size=trial.cell.batch_size).error


def to_json(record: Record) -> dict[str, Any]:
    """Plain values; what is not finite becomes None, and an error that was not measured is left out."""
    values = dataclasses.asdict(record)
    if record.error is None:
        del values["error"]
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def from_json(values: dict[str, Any]) -> Record:
    """What `to_json` made."""
    metric = values["metric"]
    return Record(
        loss=_or_infinite(values["loss"]),
        metric=math.nan if metric is None else metric,
        seconds=values["seconds"],
        curve=tuple((int(step), float(value)) for step, value in values["curve"]),
        multiplier=values["multiplier"],
        active=values["active"],
        error=_or_infinite(values["error"]) if "error" in values else None,
    )


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value
