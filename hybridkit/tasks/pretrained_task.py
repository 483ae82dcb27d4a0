"""What the tasks of pretrained networks share: the network that --model names, with the head of the task."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset

from hybridkit.calls import Inputs
from hybridkit.errors import UsageError
from hybridkit.options import option
from hybridkit.pretrained import Pretrained, is_pretrained, open_pretrained
from hybridkit.tasks.data import Batch, Data, in_order, size
from hybridkit.tasks.protocol import Axes, Splits

FEATURE_BLOCK = 1_024  # samples whose cluster features are computed at once

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedOptions:
    """Options of every task of pretrained networks."""

    model: str = option("", "the network; --model fills it")
    trust_remote_code: bool = option(False, "code of the model's own folder may run")
    data_dir: str = option("", "a folder, a file, or hf:OWNER/NAME")
    subset: str = option("", "which configuration of hf:OWNER/NAME")
    eval_samples: Annotated[int, Ge(1)] = option(
        512, "samples of validation and test that are measured at most"
    )


class PretrainedTask(ABC):
    """A `Task` whose networks are pretrained ones: `hf:OWNER/NAME`, a folder, NAME.gguf.

    A batch is a mapping of tensors, its inputs are those of `input_names` that it holds. A network of the
    user's own (`package.module:factory`) may stand in; then `found` is what another option names.
    """

    name: ClassVar[str]
    metric: str
    metric_goal: Literal["max", "min"]
    input_names: tuple[str, ...]
    dynamic_axes: Mapping[str, Axes]

    def __init__(self, options: PretrainedOptions) -> None:
        if not options.model:
            raise UsageError(f"task {self.name} needs a network: --model FOLDER, hf:OWNER/NAME or NAME.gguf")
        text = options.model
        self._common = options
        own_code = ":" in text and not is_pretrained(text)
        self.models: Mapping[str, Callable[[], nn.Module]] = (
            {} if own_code else {text: partial(self.from_pretrained, text)}
        )

    def from_pretrained(self, text: str) -> nn.Module:
        """The network that `text` names with the head of this task, in evaluation mode."""
        return self._network(self._opened(text))

    @abstractmethod
    def _network(self, found: Pretrained) -> nn.Module:
        """The network of `found` with the head of this task."""

    @abstractmethod
    def _load(self) -> Splits:
        """The data."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Batch:
        """One batch of samples."""

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean loss of the model's output, 0-d."""

    @abstractmethod
    def metrics(self, output: Any, batch: Batch) -> dict[str, float]:
        """Means over the batch, by name."""

    @abstractmethod
    def _features(self, batch: Batch) -> Tensor:
        """What samples are clustered by, float [batch, features]."""

    @abstractmethod
    def _digests(self) -> dict[str, str]:
        """sha256 of the data, and of what turns them into a network's inputs, by name."""

    @cached_property
    def _splits(self) -> Splits:
        found = self._load()
        limit = self._common.eval_samples
        return Splits(found.train, _spread(found.validation, limit), _spread(found.test, limit))

    def splits(self) -> Splits:
        """The data; opened on the first call and kept."""
        return self._splits

    def inputs(self, batch: Batch) -> Inputs:
        """The arguments of the model by name."""
        return {name: batch[name] for name in self.input_names if name in batch}

    def cluster_features(self, data: Data) -> NDArray[np.float32]:
        """What the samples are clustered by, [samples, features]."""
        blocks = in_order(data, FEATURE_BLOCK, self.collate)
        return np.concatenate([self._features(block).float().numpy() for block in blocks])

    def provenance(self) -> dict[str, Any]:
        """Source, samples of each part, and sha256 of the data and of what reads them."""
        splits, digests = self.splits(), self._digests()
        whole = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
        return {
            "task": self.name,
            "source": self._common.data_dir or "Python standard library",
            "samples": {part: size(getattr(splits, part)) for part in ("train", "validation", "test")},
            "sha256": whole,
            **{f"{name}_sha256": digest for name, digest in digests.items()},
        }

    def _opened(self, text: str) -> Pretrained:
        return open_pretrained(text, trust_remote_code=self._common.trust_remote_code)


def say(message: str) -> None:
    """One line for the user."""
    logger.warning(message)


def _spread(data: Any, most: int) -> Any:
    """`most` samples at most, evenly spread over the data."""
    if len(data) <= most:
        return data
    return Subset(data, np.linspace(0, len(data) - 1, most).round().astype(int).tolist())
