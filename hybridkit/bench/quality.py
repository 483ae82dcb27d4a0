"""The metric of the task that a model file names, for each variant of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hybridkit.bench.variants import Variant
from hybridkit.errors import HybridkitError, UsageError

SAMPLES: Final = 2048  # of the test data, at most


@dataclass(frozen=True, slots=True)
class Quality:
    """A task's metric for each file; `note` says why there is none."""

    task: str | None
    metric: str | None
    samples: int
    values: dict[str, float]
    note: str


def quality_of(variants: Sequence[Variant], metadata: Mapping[str, str]) -> Quality:
    """The metric on the test data of the task that the file names; only registered tasks are used."""
    from hybridkit.registry import registry

    name = metadata.get("hybridkit.task", "")
    try:
        registry().find("task", name)
    except UsageError:
        reason = f"the file names no registered task ({name!r})" if name else "the file names no task"
        return Quality(None, None, 0, {}, f"{reason}: no quality is measured")
    try:
        return _measure(variants, name)
    except HybridkitError as error:
        return Quality(name, None, 0, {}, f"no quality is measured: {error}")


def _measure(variants: Sequence[Variant], name: str) -> Quality:
    import torch

    from hybridkit.tasks.resolve import make_task

    task = make_task(name)
    data = tuple(part[:SAMPLES] for part in task.splits().test)
    values = {}
    for variant in variants:
        runner = variant.session(1)
        names = [value.name for value in runner.get_inputs()]
        total = 0.0
        for start in range(0, len(data[0]), 256):
            batch = tuple(part[start : start + 256] for part in data)
            given = {n: x.numpy() for n, x in zip(names, task.inputs(batch), strict=True)}
            output = torch.from_numpy(runner.run(None, given)[0])
            scores = {"loss": float(task.loss(output, batch)), **task.metrics(output, batch)}
            total += float(scores[task.metric]) * len(batch[0])
        values[variant.name] = total / len(data[0])
    return Quality(name, task.metric, len(data[0]), values, "")
