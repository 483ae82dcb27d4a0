"""What a task says about the network to be exported: its inputs, and what the file is verified on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridkit.calls import Inputs
from hybridkit.exporting.protocol import Validation
from hybridkit.tasks.data import first, in_order
from hybridkit.tasks.protocol import Axes, Task, collate_of, named_axes, named_inputs

EXAMPLES = 2  # samples that the network is traced with
BATCH = 64  # samples at a time in verification


@dataclass(frozen=True, slots=True)
class Subject:
    """Arguments of `export` that are about the network's inputs."""

    example_inputs: Inputs
    input_names: Sequence[str]
    dynamic_axes: Sequence[Axes]
    validation: Validation


def subject_of(task: Task) -> Subject:
    """The inputs of a task's networks, verified on its validation data."""
    data, collate = task.splits().validation, collate_of(task)
    batch, at_once = first(data, EXAMPLES, collate), getattr(task, "samples_at_once", BATCH)
    names = list(named_inputs(task, batch))
    inputs = task.inputs(batch)
    # a loss that is always zero would say that all is well
    loss = None if getattr(task, "needs_teacher", False) else task.loss
    return Subject(
        dict(inputs) if isinstance(inputs, Mapping) else inputs,
        names,
        list(named_axes(task, names).values()),
        Validation(batches=list(in_order(data, at_once, collate)), inputs=task.inputs, loss=loss),
    )
