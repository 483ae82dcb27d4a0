"""The whole update inside one l2 ball."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridkit.optim.constraints.shrink import rounding_unit, shrink
from hybridkit.optim.foreach import norms, total_norm
from hybridkit.optim.protocol import ConstraintReport


class L2Ball:
    """||delta||_2 <= radius over all parameters together; delta keeps its direction."""

    def bind(self, parameters: Sequence[Tensor], clusters: Sequence[int]) -> None:
        """Nothing to remember: the ball knows no clusters."""

    def apply(
        self, updates: Sequence[Tensor], parameters: Sequence[Tensor], radius: Tensor | float
    ) -> ConstraintReport:
        """Scale all updates by one factor, in place. `radius` is a scalar."""
        norm = total_norm(norms(updates))
        factor, active = shrink(norm, radius, total_norm(norms(parameters)), rounding_unit(parameters))
        torch._foreach_mul_(list(updates), factor)
        return ConstraintReport(norm, active.expand(len(updates)))
