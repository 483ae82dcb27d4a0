"""The losses that were observed since the last step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hybridkit.errors import UsageError


@dataclass(slots=True)
class Observed:
    """Sum and number of the losses since the last step, and where the batches came from."""

    total: Tensor | float = 0.0
    count: int = 0
    cluster_id: int = -1
    histogram: tuple[float, ...] = ()

    def add(self, loss: Tensor | float, cluster_id: int, histogram: Sequence[float]) -> None:
        """Take in one loss. Raises UsageError unless it is one number."""
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise UsageError(f"the loss has to be one number; it has shape {tuple(loss.shape)}")
        value = loss.detach().reshape(()) if isinstance(loss, Tensor) else float(loss)
        mixed = self.count > 0 and cluster_id != self.cluster_id
        self.total = self.total + value if self.count else value
        self.count += 1
        self.cluster_id = -1 if mixed else cluster_id
        self.histogram = tuple(histogram)

    def mean(self, total: float) -> float:
        """The mean loss, given the total as a number; nan where nothing was observed."""
        return total / self.count if self.count else math.nan
