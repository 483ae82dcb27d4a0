"""Measuring a network on one part of the data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hybridkit.tasks.protocol import Batch, Task


def batches(data: Batch, size: int, device: str = "cpu") -> Iterator[Batch]:
    """`data` in order, `size` samples at a time, on `device`."""
    for start in range(0, len(data[0]), size):
        yield tuple(part[start : start + size].to(device) for part in data)


def evaluate(
    model: nn.Module, task: Task, data: Batch, *, batch_size: int, device: str = "cpu"
) -> dict[str, float]:
    """Loss and metrics of `model` on `data`, means over the samples; the model's mode is left as it was."""
    sums: dict[str, float] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches(data, batch_size, device):
                output = model(*task.inputs(batch))
                values = {"loss": float(task.loss(output, batch)), **task.metrics(output, batch)}
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(batch[0])
    finally:
        model.train(was_training)
    return {name: total / max(len(data[0]), 1) for name, total in sums.items()}


def outputs(model: nn.Module, task: Task, data: Batch, *, batch_size: int, device: str = "cpu") -> Tensor:
    """The model's output on `data` in evaluation mode, on the CPU."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parts = [model(*task.inputs(batch)).cpu() for batch in batches(data, batch_size, device)]
    finally:
        model.train(was_training)
    return torch.cat(parts)


def relative_error(output: Tensor, reference: Tensor) -> float:
    """||output - reference||^2 / ||reference||^2, in double precision."""
    reference = reference.double()
    return float((output.double() - reference).square().sum() / reference.square().sum())
