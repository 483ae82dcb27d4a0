"""The task protocol: what is trained, on which data, and what counts as good."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.calls import Inputs, call
from hybridkit.tasks.data import Batch, Collate, Data

Axes = Mapping[int, str]  # dimension -> name


@dataclass(frozen=True, slots=True)
class Splits:
    """Three disjoint parts of the data, fixed for ever; see tasks/data.py for what each may be."""

    train: Data
    validation: Data
    test: Data


class Task(Protocol):
    """Data, default models, loss, metric and cluster features.

    A batch is a tree of tensors, samples along the first dimension; an output is whatever the model answers
    with. `models` maps names to factories, the first is the default. `metric` is the key of `metrics` that a
    person looks at first and `metric_goal` says which way is better. `input_names` names the model's inputs
    where `inputs` gives a tuple; `dynamic_axes` the dimensions of each that may vary at inference, in that
    order, or by name.

    A task may also have `forward(model, batch) -> output`, where the model is not simply called with
    `inputs`, and `collate(samples) -> batch`, where samples of a dataset differ in length, so that torch's
    default cannot put them together; `meter() -> Meter`, for what is no mean over batches, such as F1;
    `from_pretrained(text) -> nn.Module`, the network that `hf:OWNER/NAME`, a folder or a GGUF file names,
    with the head of the task; `needs_teacher`, True where its loss alone teaches nothing;
    `samples_at_once`, how many samples a file is verified on at once, where they are large; and
    `sample(model) -> str`, text that a language model writes, such as its greedy continuation of a validation
    prompt. It is called at every evaluation, in evaluation mode without gradients, on the model's device, and
    logged; it should take less time than that.
    """

    name: str
    models: Mapping[str, Callable[[], nn.Module]]
    metric: str
    metric_goal: Literal["max", "min"]
    input_names: tuple[str, ...]
    dynamic_axes: tuple[Axes, ...] | Mapping[str, Axes]

    def splits(self) -> Splits:
        """The data; opened on the first call and kept."""
        ...

    def inputs(self, batch: Batch) -> Inputs:
        """The arguments of the model for this batch: in order, or by name. Optional ones may be left out."""
        ...

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean loss of the model's output, 0-d."""
        ...

    def metrics(self, output: Any, batch: Batch) -> dict[str, float]:
        """Means over the batch, by name."""
        ...

    def cluster_features(self, data: Data) -> NDArray[np.float32]:
        """What the samples are clustered by, [samples, features]."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Where the data came from and how much there is; recorded with every run."""
        ...


class Meter(Protocol):
    """Metrics of a whole part of the data, gathered batch by batch."""

    def add(self, output: Any, batch: Batch, values: Mapping[str, float]) -> None:
        """Take note of a batch, and of what the task's `metrics` said of it."""
        ...

    def result(self) -> dict[str, float]:
        """What was found so far, by name; it replaces means of the same name."""
        ...


def forward(task: Task, model: nn.Module, batch: Batch) -> Any:
    """The model's output on a batch."""
    own = getattr(task, "forward", None)
    return call(model, task.inputs(batch)) if own is None else own(model, batch)


def collate_of(task: Task) -> Collate | None:
    """How the task puts samples together; None: torch's default."""
    found: Collate | None = getattr(task, "collate", None)
    return found


def meter_of(task: Task) -> Meter | None:
    """A new meter of the task's, where it has one."""
    make = getattr(task, "meter", None)
    made: Meter | None = make() if make is not None else None
    return made


def named_inputs(task: Task, batch: Batch) -> dict[str, Tensor]:
    """The model's inputs for a batch, by name."""
    inputs = task.inputs(batch)
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return dict(zip(task.input_names, inputs, strict=True))


def named_axes(task: Task, names: Sequence[str]) -> dict[str, Axes]:
    """The free dimensions of each input."""
    axes = task.dynamic_axes
    if isinstance(axes, Mapping):
        return {name: axes.get(name, {0: "batch"}) for name in names}
    return dict(zip(names, axes, strict=True))
