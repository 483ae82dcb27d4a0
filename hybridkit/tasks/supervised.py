"""A task of (input, target) pairs, described by its parts; the easiest way to a task of one's own.

    def load() -> Splits:
        return stratified_splits(inputs, targets)

    task = SupervisedTask(name="mine", load=load, models={"mlp": lambda: MLP(13, (64, 64), 3)})

is a complete task for classification; see docs/tasks.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.tasks.protocol import Batch, Splits
from hybridkit.tasks.splits import fingerprint

FEATURE_BLOCK = 4_096  # samples whose cluster features are computed at once


def as_is(inputs: Tensor) -> Tensor:
    """The inputs themselves."""
    return inputs


def flat_values(inputs: Tensor) -> Tensor:
    """All values of a sample in a row, float32 [samples, values]."""
    return inputs.reshape(len(inputs), -1).float()


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of samples whose largest logit (last dimension of `output`) is the target, 0-d."""
    return (output.argmax(-1) == target).float().mean()


def default_measures() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """What a classification task measures besides the loss."""
    return {"accuracy": accuracy}


@dataclass(kw_only=True, eq=False)
class SupervisedTask:
    """A `Task` whose batches are (inputs, targets).

    `load`: gives the splits, each (inputs [samples, ...], targets [samples, ...]); called once.
    `prepare`: turns stored inputs into the model's, e.g. bytes into scaled floats.
    `loss_function`, `measures`: take (output, target) and return 0-d tensors.
    `metric`: the name of a measure, or "loss".
    `features`: turns stored inputs into float [samples, features], what samples are clustered by.
    `source`: where the data come from, in a few words.
    """

    name: str
    load: Callable[[], Splits]
    models: Mapping[str, Callable[[], nn.Module]]
    prepare: Callable[[Tensor], Tensor] = as_is
    loss_function: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    measures: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=default_measures)
    metric: str = "accuracy"
    metric_goal: Literal["max", "min"] = "max"
    features: Callable[[Tensor], Tensor] = flat_values
    input_names: tuple[str, ...] = ("input",)
    dynamic_axes: tuple[Mapping[int, str], ...] = ({0: "batch"},)
    source: str = ""
    _splits: Splits | None = field(default=None, init=False, repr=False)

    def splits(self) -> Splits:
        """The data; loaded on the first call and kept."""
        if self._splits is None:
            self._splits = self.load()
        return self._splits

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The model's one argument."""
        return (self.prepare(batch[0]),)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the model's output, 0-d."""
        return self.loss_function(output, batch[1])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, float]:
        """The loss and every measure, means over the batch."""
        values = {"loss": self.loss(output, batch)}
        values |= {name: measure(output, batch[1]) for name, measure in self.measures.items()}
        return {name: float(value) for name, value in values.items()}

    def cluster_features(self, data: Batch) -> NDArray[np.float32]:
        """What the samples are clustered by, [samples, features]."""
        blocks = [self.features(block).float().cpu().numpy() for block in torch.split(data[0], FEATURE_BLOCK)]
        return np.concatenate(blocks)

    def provenance(self) -> dict[str, Any]:
        """Source, number of samples of each part, and a sha256 of all data."""
        splits = self.splits()
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        return {
            "task": self.name,
            "source": self.source,
            "samples": {name: len(part[0]) for name, part in parts.items()},
            "sha256": fingerprint(*(tensor for part in parts.values() for tensor in part)),
        }
