"""No trust region."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridkit.optim.foreach import norms, total_norm
from hybridkit.optim.protocol import ConstraintReport


class Unconstrained:
    """Leaves every update as it is."""

    per_cluster = False

    def bind(self, parameters: Sequence[Tensor], clusters: Sequence[int]) -> None:
        """Nothing to remember."""

    def apply(
        self, updates: Sequence[Tensor], parameters: Sequence[Tensor], radius: Tensor | float
    ) -> ConstraintReport:
        """Report the l2 norm of the update; change nothing."""
        each = norms(updates)
        return ConstraintReport(total_norm(each), torch.zeros_like(each, dtype=torch.bool))
