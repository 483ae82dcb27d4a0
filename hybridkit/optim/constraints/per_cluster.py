"""An l2 ball for each parameter cluster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridkit.optim.constraints.shrink import rounding_unit, shrink
from hybridkit.optim.foreach import cluster_norms, membership, norms
from hybridkit.optim.protocol import ConstraintReport


class PerCluster:
    """||delta_c||_2 <= radius_c for every parameter cluster c; each keeps its direction.

    Without `bind` all tensors are one cluster. With one radius for all, the reported norm is the largest of
    the clusters'; with a radius per cluster, it is theirs.
    """

    per_cluster = True

    def __init__(self) -> None:
        self._clusters: list[int] = []
        self._members: Tensor | None = None

    def bind(self, parameters: Sequence[Tensor], clusters: Sequence[int]) -> None:
        """Remember the cluster of each tensor."""
        self._clusters = list(clusters)
        self._members = membership(clusters, 1 + max(clusters, default=0), parameters[0].device)

    def apply(
        self, updates: Sequence[Tensor], parameters: Sequence[Tensor], radius: Tensor | float
    ) -> ConstraintReport:
        """Scale each cluster's updates by one factor, in place. `radius` is a scalar or [clusters]."""
        if self._members is None:
            self.bind(parameters, [0] * len(parameters))
        assert self._members is not None
        norm = cluster_norms(norms(updates), self._members)
        held = cluster_norms(norms(parameters), self._members)
        factor, active = shrink(norm, radius, held, rounding_unit(parameters))
        each = factor.unbind()
        torch._foreach_mul_(list(updates), [each[c] for c in self._clusters])
        one_radius = not isinstance(radius, Tensor) or radius.ndim == 0
        # A product with 0 and 1 instead of indexing: no copy of the labels to the device.
        changed = (self._members * active).sum(1) > 0
        return ConstraintReport(norm.max() if one_radius else norm, changed)
