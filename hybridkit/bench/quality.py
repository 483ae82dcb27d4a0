"""The metric of the task that a model file names, for each variant of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hybridkit.bench.variants import Variant
from hybridkit.errors import HybridkitError, UsageError

SAMPLES: Final = 2048  # of the test data, at most
BATCH: Final = 256


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

    from hybridkit.tasks.data import count, in_order
    from hybridkit.tasks.protocol import collate_of, named_inputs
    from hybridkit.tasks.resolve import make_task

    task = make_task(name)
    values, samples = {}, 0
    for variant in variants:
        runner = variant.session(1)
        total, samples = 0.0, 0
        for batch in in_order(task.splits().test, BATCH, collate_of(task)):
            given = {name: x.numpy() for name, x in named_inputs(task, batch).items()}
            output = torch.from_numpy(runner.run(None, given)[0])
            scores = {"loss": float(task.loss(output, batch)), **task.metrics(output, batch)}
            total += float(scores[task.metric]) * count(batch)
            samples += count(batch)
            if samples >= SAMPLES:
                break
        values[variant.name] = total / samples
    return Quality(name, task.metric, samples, values, "")
