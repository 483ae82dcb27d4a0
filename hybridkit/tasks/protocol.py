"""The task protocol: what is trained, on which data, and what counts as good."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Splits:
    """Three disjoint parts of the data, fixed for ever, each a tuple of tensors of equal length."""

    train: Batch
    validation: Batch
    test: Batch


class Task(Protocol):
    """Data, default models, loss, metric and cluster features.

    A batch is the tuple of tensors of a split, indexed along the first dimension. `models` maps names to
    factories, the first is the default. `metric` is the key of `metrics` that a person looks at first and
    `metric_goal` says which way is better. `dynamic_axes` names the dimensions of each model input that
    may vary at inference.
    """

    name: str
    models: Mapping[str, Callable[[], nn.Module]]
    metric: str
    metric_goal: Literal["max", "min"]
    input_names: tuple[str, ...]
    dynamic_axes: tuple[Mapping[int, str], ...]

    def splits(self) -> Splits:
        """The data; loaded on the first call and kept."""
        ...

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The arguments of the model for this batch."""
        ...

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the model's output, 0-d."""
        ...

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, float]:
        """Means over the batch, by name."""
        ...

    def cluster_features(self, data: Batch) -> NDArray[np.float32]:
        """What the samples are clustered by, [samples, features]."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Where the data came from and how much there is; recorded with every run."""
        ...
