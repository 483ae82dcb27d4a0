"""Each tensor's update relative to the tensor's own norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from hybridkit.optim.constraints.shrink import rounding_unit, shrink
from hybridkit.optim.foreach import norms, total_norm, vector
from hybridkit.optim.protocol import ConstraintReport
from hybridkit.options import option


class PerLayer:
    """||delta_i||_2 <= radius * s_i for every tensor i; each keeps its direction.

        s_i = max(||W_i||_2, floor * rms(W) * sqrt(size of W_i)),    rms(W) over all parameters together

    The size s_i is the tensor's own norm, as in LARS (You et al. 2017, arXiv 1708.03888). The floor lets zero
    biases and new layers leave zero: they may move as if they were a share `floor` of the model's average
    size. The reported norm is the largest ||delta_i|| / s_i, a ratio, and the radius is one too. A model that
    is zero everywhere counts as rms(W) = 1.
    """

    per_cluster = False

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `per-layer`."""

        floor: Annotated[float, Gt(0.0)] = option(
            0.5, "least size of a tensor, relative to the model's average"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self._counts: list[int] = []
        self._roots = torch.zeros(0)  # of the counts, on the parameters' device

    def bind(self, parameters: Sequence[Tensor], clusters: Sequence[int]) -> None:
        """Remember how large the tensors are; the clusters do not matter."""
        self._counts = [p.numel() for p in parameters]
        self._roots = vector([count**0.5 for count in self._counts], parameters[0].device)

    def apply(
        self, updates: Sequence[Tensor], parameters: Sequence[Tensor], radius: Tensor | float
    ) -> ConstraintReport:
        """Scale each update by a factor of its own, in place. `radius` is a scalar without unit."""
        norm, held = norms(updates), norms(parameters)
        if [p.numel() for p in parameters] != self._counts:
            self.bind(parameters, [0] * len(parameters))
        rms = total_norm(held) / max(sum(self._counts), 1) ** 0.5
        rms = torch.where(rms > 0, rms, 1.0)
        size = torch.maximum(held, self.options.floor * rms * self._roots)
        ratio = torch.where(size > 0, norm / size, 0.0)  # a tensor without elements has no size
        factor, active = shrink(ratio, radius, held / size.clamp(min=1e-38), rounding_unit(parameters))
        torch._foreach_mul_(list(updates), list(factor.unbind()))
        return ConstraintReport(ratio.max(), active)
