"""A task of inputs and targets, described by its parts; the easiest way to a task of one's own.

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
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.calls import Inputs
from hybridkit.errors import UsageError
from hybridkit.options import nearest
from hybridkit.tasks.data import Batch, Collate, Data, in_memory, in_order, size
from hybridkit.tasks.protocol import Axes, Splits
from hybridkit.tasks.splits import fingerprint
from hybridkit.trees import main_output, tensors

FEATURE_BLOCK = 4_096  # samples whose cluster features are computed at once


def as_is(inputs: Tensor) -> Tensor:
    """The inputs themselves."""
    return inputs


def flat_values(inputs: Any) -> Tensor:
    """All values of a sample in a row, float32 [samples, values]. Raises UsageError for several tensors."""
    if not isinstance(inputs, Tensor):
        raise UsageError("samples of several tensors are clustered by what the task's `features` says")
    return inputs.reshape(len(inputs), -1).float()


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of samples whose largest logit (last dimension of `output`) is the target, 0-d."""
    return (output.argmax(-1) == target).float().mean()


def default_measures() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """What a classification task measures besides the loss."""
    return {"accuracy": accuracy}


@dataclass(kw_only=True, eq=False)
class SupervisedTask:
    """A `Task` whose batches are (inputs, target), or mappings in which one entry is the target.

    `load`: gives the splits; called once. A mapping's other entries are the model's inputs by name.
    `prepare`: turns stored inputs (a tensor, or that mapping) into the model's, e.g. bytes into floats.
    `loss_function`, `measures`: take (output, target) and return 0-d tensors; of an output with several
    tensors they get the main one (see `main_output`).
    `metric`: the name of a measure, or "loss".
    `features`: turns stored inputs into float [samples, features], what samples are clustered by.
    `collate`: puts samples of a dataset together; None: torch's default.
    `target`: the name of a mapping's target.
    `source`: where the data come from, in a few words.
    """

    name: str
    load: Callable[[], Splits]
    models: Mapping[str, Callable[[], nn.Module]]
    prepare: Callable[[Any], Any] = as_is
    loss_function: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    measures: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=default_measures)
    metric: str = "accuracy"
    metric_goal: Literal["max", "min"] = "max"
    features: Callable[[Any], Tensor] = flat_values
    input_names: tuple[str, ...] = ("input",)
    dynamic_axes: tuple[Axes, ...] | Mapping[str, Axes] = ({0: "batch"},)
    collate: Collate | None = None
    target: str = "labels"
    source: str = ""
    _splits: Splits | None = field(default=None, init=False, repr=False)

    def splits(self) -> Splits:
        """The data; loaded on the first call and kept."""
        if self._splits is None:
            self._splits = self.load()
        return self._splits

    def inputs(self, batch: Batch) -> Inputs:
        """The model's one argument, or its arguments by name."""
        prepared = self.prepare(self._parts(batch)[0])
        return prepared if isinstance(prepared, Mapping) else (prepared,)

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean loss of the model's output, 0-d."""
        return self.loss_function(main_output(output), self._parts(batch)[1])

    def metrics(self, output: Any, batch: Batch) -> dict[str, float]:
        """The loss and every measure, means over the batch."""
        main, target = main_output(output), self._parts(batch)[1]
        values = {"loss": self.loss(output, batch)}
        values |= {name: measure(main, target) for name, measure in self.measures.items()}
        return {name: float(value) for name, value in values.items()}

    def cluster_features(self, data: Data) -> NDArray[np.float32]:
        """What the samples are clustered by, [samples, features]."""
        blocks = (self._parts(block)[0] for block in in_order(data, FEATURE_BLOCK, self.collate))
        return np.concatenate([self.features(block).float().cpu().numpy() for block in blocks])

    def provenance(self) -> dict[str, Any]:
        """Source, number of samples of each part, and a sha256 of all data that lie in memory."""
        splits = self.splits()
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        held = all(in_memory(part) for part in parts.values())
        return {
            "task": self.name,
            "source": self.source,
            "samples": {name: size(part) for name, part in parts.items()},
            "sha256": fingerprint(*(t for part in parts.values() for t in tensors(part))) if held else None,
        }

    def _parts(self, batch: Batch) -> tuple[Any, Tensor]:
        """Stored inputs and target. Raises UsageError where a mapping has no target."""
        if not isinstance(batch, Mapping):
            return batch[0], batch[1]
        if self.target not in batch:
            raise UsageError(
                f"task {self.name!r}: a batch has no {self.target!r}; {nearest(self.target, batch)}"
            )
        return {name: part for name, part in batch.items() if name != self.target}, batch[self.target]
