"""Measuring a network on one part of the data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridkit.tasks.protocol import Batch, Task


def batches(data: Batch, size: int, device: str = "cpu") -> Iterator[Batch]:
    """`data` in order, `size` samples at a time, on `device`."""
    for start in range(0, len(data[0]), size):
        yield tuple(part[start : start + size].to(device) for part in data)


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
    """Loss and metrics averaged over samples, batch by batch."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.sums: dict[str, float] = {}
        self.samples = 0

    def add(self, output: Tensor, batch: Batch) -> None:
        """Add the model's output on one batch."""
        values = {"loss": float(self.task.loss(output, batch)), **self.task.metrics(output, batch)}
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value) * len(batch[0])
        self.samples += len(batch[0])

    def result(self) -> dict[str, float]:
        """The means so far, by name."""
        return {name: total / self.samples for name, total in self.sums.items()}


def evaluate(
    model: nn.Module, task: Task, data: Batch, *, batch_size: int, device: str = "cpu"
) -> dict[str, float]:
    """Loss and metrics of `model` on `data`, means over the samples; the model's mode is left as it was."""
    means = Means(task)
    with measuring(model):
        for batch in batches(data, batch_size, device):
            means.add(model(*task.inputs(batch)), batch)
    return means.result()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A network beside its twin on the same data. `error` = ||twin - network||^2 / ||network||^2."""

    network: dict[str, float]
    twin: dict[str, float]
    error: float


def compare(
    model: nn.Module, twin: nn.Module, task: Task, data: Batch, *, batch_size: int, device: str = "cpu"
) -> Comparison:
    """Metrics of both networks (the twin on the CPU), and the relative error of the twin's output."""
    ours, theirs = Means(task), Means(task)
    difference = size = 0.0
    with measuring(model), measuring(twin):
        for batch in batches(data, batch_size):
            moved = tuple(part.to(device) for part in batch)
            output, other = model(*task.inputs(moved)), twin(*task.inputs(batch))
            ours.add(output, moved)
            theirs.add(other, batch)
            reference = output.cpu().double()
            difference += float((other.double() - reference).square().sum())
            size += float(reference.square().sum())
    return Comparison(ours.result(), theirs.result(), difference / size if size else 0.0)


def outputs(model: nn.Module, task: Task, data: Batch, *, batch_size: int, device: str = "cpu") -> Tensor:
    """The model's output on `data` in evaluation mode, on the CPU."""
    with measuring(model):
        return torch.cat([model(*task.inputs(batch)).cpu() for batch in batches(data, batch_size, device)])
