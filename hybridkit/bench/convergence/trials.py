"""One training run: what it is, and what is kept of it."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from hybridkit.bench.convergence.identity import key
from hybridkit.bench.convergence.methods import BASELINE, OURS, UNCONSTRAINED, Method
from hybridkit.bench.convergence.settings import Setting

if TYPE_CHECKING:
    from hybridkit.tasks.data import Data
    from hybridkit.training.config import TrainConfig
    from hybridkit.training.trainer import Trainer

POINTS: Final = 5  # of a curve, after its start
PART: Final = 400  # samples at most, evenly spaced, where all of them would take too long
COMPARED: Final = (OURS, UNCONSTRAINED, BASELINE)  # with their full-precision counterparts, if quantised


@dataclass(frozen=True, slots=True)
class Trial:
    """Equal trials give equal records on one machine, seconds aside.

    lr, radius: None takes the default of `train`. share: of the setting's steps; schedules end with the run.
    """

    setting: Setting
    method: Method
    seed: int
    lr: float | None = None
    share: float = 1.0
    radius: float | None = None

    @property
    def steps(self) -> int:
        """How many it takes."""
        return max(round(self.share * self.setting.steps), 1)

    @property
    def is_ranked(self) -> bool:
        """Whether it stands beside other methods; shorter runs and wrong settings are about final losses."""
        return self.share == 1 and self.radius is None and (self.lr is None or not self.method.ours)

    @property
    def is_compared(self) -> bool:
        """Whether the same is trained in full precision as well, to measure the quantisation error."""
        as_given = self.lr is None and self.is_ranked
        return self.setting.precision != "fp32" and self.method.name in COMPARED and as_given

    def counterpart(self) -> Trial:
        """The same in full precision."""
        return dataclasses.replace(self, setting=dataclasses.replace(self.setting, precision="fp32"))

    def key(self) -> str:
        """Its name in the store."""
        measured = "all and the error" if self.is_compared else "all" if self.is_ranked else "loss"
        return key(self.config(), measured=measured)

    def config(self) -> TrainConfig:
        """As `train` would run it, on one thread."""
        from hybridkit.training.config import resolve

        flags = {**self.setting.flags(self.steps), **self.method.flags}
        return resolve(
            seed=self.seed,
            lr=self.lr,
            initial_trust_radius=self.radius,
            threads=1,
            options=self.method.options,  # type: ignore[arg-type]
            **flags,
        )


def trained(trial: Trial) -> Trainer:
    """The whole run of a trial, nothing measured. Raises DivergedError where the loss is not finite."""
    from hybridkit.training.trainer import Trainer

    trainer = Trainer.seeded(trial.config())
    while not trainer.done:
        trainer.step()
    return trainer


@dataclass(frozen=True, slots=True)
class Record:
    """What a trial came to; a run that diverged has an infinite loss.

    loss: on the validation data after the last step. metric: the task's own, on the test data. curve: (step,
    validation loss), on the way on a part of the data. Of a trial that is not ranked there is no metric
    (NaN), and the curve has two ends only. seconds: of the processor for training, what is done
    once before the first step (clustering) included, evaluation not. multiplier: its mean; active: share of
    the steps that the constraint shortened. error: ||logits(packed) - logits(counterpart)||^2 over
    ||logits(counterpart)||^2, on the test data or a part of them, where the trial is compared.
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
    curve = [(0, partial_loss(trainer))]
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
                curve.append((step, partial_loss(trainer)))
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
        error=quantization_error(trial, trainer) if trial.is_compared else None,
    )


def partial_loss(trainer: Trainer) -> float:
    """The loss on a part of the validation data."""
    from hybridkit.training.evaluation import evaluate
    from hybridkit.training.trainer import evaluation_weights

    data = part_of(trainer.task.splits().validation)
    with evaluation_weights(trainer.optimizer):
        found = evaluate(trainer.model, trainer.task, data, batch_size=trainer.config.batch_size)
    return found["loss"]


def part_of(data: Data) -> Data:
    """PART of the samples at most, evenly spaced; of a stream the first."""
    from torch.utils.data import Subset

    from hybridkit.tasks.data import in_memory, is_stream, size
    from hybridkit.trees import map_tensors

    if is_stream(data):
        return list(islice(data, PART))
    step = math.ceil((size(data) or 1) / PART)
    if in_memory(data):
        return map_tensors(lambda tensor: tensor[::step], data)
    return Subset(data, range(0, size(data) or 0, step))


def quantization_error(trial: Trial, quantized: Trainer) -> float:
    """Train the counterpart of `trial` and compare; infinite where it diverges."""
    from hybridkit.quant.convert import convert
    from hybridkit.training.evaluation import compare
    from hybridkit.training.packed import packed_network
    from hybridkit.training.trainer import DivergedError

    packed = packed_network(quantized.model, convert(quantized.model))
    try:
        full = trained(trial.counterpart())
    except DivergedError:
        return math.inf
    test = part_of(full.task.splits().test)
    return compare(full.model, packed, full.task, test, batch_size=trial.setting.batch_size).error


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
