"""Each matrix update's spectral norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridkit.optim.constraints.shrink import rounding_unit, shrink
from hybridkit.optim.foreach import norms
from hybridkit.optim.protocol import ConstraintReport

_SQUARINGS = 8


class Spectral:
    """||delta_i||_{2->2} <= radius for every tensor i, by scaling; each keeps its direction.

    Convolution kernels are matrices [out, in * kernel]; vectors and scalars are bounded in l2. What is
    bounded is an upper bound on the spectral norm (`spectral_norm_bound`), at most 0.7 % above it for rank
    1,000: an update that close to the ball is shortened although it just fitted. The reported norm is
    the largest bound.
    """

    per_cluster = False

    def bind(self, parameters: Sequence[Tensor], clusters: Sequence[int]) -> None:
        """Nothing to remember: every tensor stands for itself."""

    def apply(
        self, updates: Sequence[Tensor], parameters: Sequence[Tensor], radius: Tensor | float
    ) -> ConstraintReport:
        """Scale each update by a factor of its own, in place. `radius` is a scalar."""
        frobenius = norms(updates).unbind()
        pairs = zip(updates, frobenius, strict=True)
        norm = torch.stack([spectral_norm_bound(u, f) if u.ndim >= 2 and u.numel() else f for u, f in pairs])
        factor, active = shrink(norm, radius, norms(parameters), rounding_unit(parameters))
        torch._foreach_mul_(list(updates), list(factor.unbind()))
        return ConstraintReport(norm.max(), active)


def spectral_norm_bound(matrix: Tensor, frobenius: Tensor) -> Tensor:
    """An upper bound on the largest singular value of `matrix` (its first dimension by the rest), fp32 0-d.

    With G = M M^T (or M^T M, whichever is smaller), whose eigenvalues are the squared singular values:

        sigma_max <= ||G^(2^k)||_F^(1 / 2^(k+1)) <= r^(1 / 2^(k+2)) * sigma_max,    r = rank, k = 8

    The powers come from k squarings, rescaled on the way. Matrix products only: an SVD would wait for the
    device. `frobenius` is the matrix's Frobenius norm, itself a bound, and the result is never above it.
    """
    m = matrix.flatten(1).float()
    m = m / torch.where(frobenius > 0, frobenius, 1.0)  # all singular values in [0, 1]
    power = m @ m.T if m.shape[0] <= m.shape[1] else m.T @ m
    logarithm = torch.zeros_like(frobenius)
    exponent = 1.0
    for _ in range(_SQUARINGS):
        scale = torch.linalg.matrix_norm(power).clamp(min=1e-30)
        power = power / scale
        logarithm = logarithm + scale.log() * exponent
        power = power @ power
        exponent /= 2
    logarithm = logarithm + torch.linalg.matrix_norm(power).clamp(min=1e-30).log() * exponent
    return frobenius * torch.exp(logarithm / 2).clamp(max=1.0)
