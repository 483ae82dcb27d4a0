"""Measuring a network on one part of the data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.tasks.data import Batch, Data, count, in_order, on
from hybridkit.tasks.protocol import Meter, Task, collate_of, forward, meter_of
from hybridkit.training.distributed import World, world
from hybridkit.trees import floating, main_output


def batches(task: Task, data: Data, size: int, device: str = "cpu") -> Iterator[Batch]:
    """`data` in order, `size` samples at a time, on `device`."""
    for batch in in_order(data, size, collate_of(task)):
        yield on(batch, device)


@contextlib.contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the model's mode is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


class Means:
    """Loss and metrics averaged over samples, batch by batch, and what meters say: the task's, and `more`."""

    def __init__(self, task: Task, *more: Meter) -> None:
        self.task = task
        self.sums: dict[str, float] = {}
        self.samples = 0
        own = meter_of(task)
        self.meters = ([own] if own else []) + list(more)

    def add(self, output: Any, batch: Batch) -> None:
        """Add the model's output on one batch."""
        values = {"loss": float(self.task.loss(output, batch)), **self.task.metrics(output, batch)}
        samples = count(batch)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value) * samples
        self.samples += samples
        for meter in self.meters:
            meter.add(output, batch, values)

    def of_all(self, world: World) -> Means:
        """The sums of all processes of a run."""
        if world.size == 1:
            return self
        both = Means(self.task)
        for sums, samples in world.gathered((self.sums, self.samples)):
            both.samples += samples
            for name, value in sums.items():
                both.sums[name] = both.sums.get(name, 0.0) + value
        return both

    def result(self) -> dict[str, float]:
        """The means so far, by name. Raises UsageError where there was no sample."""
        if not self.samples:
            raise UsageError(
                f"task {self.task.name!r}: a part of its data that is measured on holds no sample"
            )
        means = {name: total / self.samples for name, total in self.sums.items()}
        for meter in self.meters:
            means |= meter.result()
        return means


def evaluate(
    model: nn.Module,
    task: Task,
    data: Data,
    *,
    batch_size: int,
    device: str = "cpu",
    meters: Sequence[Meter] = (),
) -> dict[str, float]:
    """Loss and metrics of `model` on `data`, means over the samples; the model's mode is left as it was.

    The processes of a run take every other batch, and all get the means over all. A meter sees the whole
    part: with one, of the task's or of `meters`, every process measures everything.
    """
    means = Means(task, *meters)
    here = World() if means.meters else world()
    with measuring(model):
        turns = in_order(data, batch_size, collate_of(task))
        while turn := list(islice(turns, here.size)):
            mine = on(turn[min(here.rank, len(turn) - 1)], device)
            output = forward(task, model, mine)  # without a batch too: a sharded network runs everywhere
            if here.rank < len(turn):
                means.add(output, mine)
    return means.of_all(here).result()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A network beside its packed form on the same data.

    `error`: relative and squared, ||packed - network||^2 / ||network||^2 over every floating-point output.
    """

    network: dict[str, float]
    packed: dict[str, float]
    error: float


def compare(
    model: nn.Module,
    packed: nn.Module,
    task: Task,
    data: Data,
    *,
    batch_size: int,
    device: str = "cpu",
    meters: Callable[[], Sequence[Meter]] = tuple,
) -> Comparison:
    """Metrics of both networks (the packed one on the CPU), and the error of its outputs.

    `meters` makes the meters of one of them.
    """
    ours, theirs = Means(task, *meters()), Means(task, *meters())
    difference = size = 0.0
    with measuring(model), measuring(packed):
        for batch in batches(task, data, batch_size):
            moved = on(batch, device)
            output, other = forward(task, model, moved), forward(task, packed, batch)
            ours.add(output, moved)
            theirs.add(other, batch)
            answers = floating(other)
            for name, expected in floating(output).items():
                reference = expected.cpu().float()  # logits of a vocabulary are too many for doubles
                difference += _squares(answers[name].float() - reference)
                size += _squares(reference)
    return Comparison(ours.result(), theirs.result(), difference / size if size else 0.0)


def _squares(x: Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))


def outputs(model: nn.Module, task: Task, data: Data, *, batch_size: int, device: str = "cpu") -> Tensor:
    """The model's main output on `data` in evaluation mode, on the CPU."""
    with measuring(model):
        found = (forward(task, model, batch) for batch in batches(task, data, batch_size, device))
        return torch.cat([main_output(output).cpu() for output in found])
