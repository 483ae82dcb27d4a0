"""The whole update inside one l2 ball."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hybridkit.optim import foreach
from hybridkit.optim.constraints.shrink import rounding_unit, shrink
from hybridkit.optim.protocol import ConstraintReport


class L2Ball:
    """||delta||_2 <= radius over all parameters together; delta keeps its direction."""

    per_cluster = False

    def bind(self, parameters: Sequence[Tensor], clusters: Sequence[int]) -> None:
        """Nothing to remember: the ball knows no clusters."""

    def apply(
        self, updates: Sequence[Tensor], parameters: Sequence[Tensor], radius: Tensor | float
    ) -> ConstraintReport:
        """Scale all updates by one factor, in place. `radius` is a scalar."""
        norm = foreach.norm(updates)
        factor, active = shrink(norm, radius, foreach.norm(parameters), rounding_unit(parameters))
        foreach.scale_(updates, factor)
        return ConstraintReport(norm, active.expand(len(updates)))
