"""One gradient step inside an l2 ball, with the numbers that describe it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridkit.ancestor.quantization_error import quantization_error, quantizer_for
from hybridkit.errors import UsageError
from hybridkit.optim.constraints.l2 import L2Ball
from hybridkit.optim.foreach import norm
from hybridkit.optim.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class ConstrainedUpdateInfo:
    """What a constrained step did.

    update_magnitude: l2 norm of the change as applied.
    constraint_active: whether the step was shortened.
    constraint_radius: the bound it was given.
    quantization_error: ||W - Q(W)|| / ||W|| of the updated matrices under the ternary quantizer.
    efficiency: the radius over the norm of the unconstrained step; below 1 where that was shortened,
        infinite where there was nothing to do.
    """

    update_magnitude: float
    constraint_active: bool
    constraint_radius: float
    quantization_error: float
    efficiency: float


class ConstrainedOptimizer:
    """Gradient descent in a trust region: W <- W + P(-lr * g), P the projection on the l2 ball.

    It has no state. For training, see `HybridOptimizer`, which does this around any optimizer.
    """

    def step(
        self,
        parameters: Tensor | Sequence[Tensor],
        gradients: Tensor | Sequence[Tensor],
        learning_rate: float,
        constraint_radius: float,
    ) -> ConstrainedUpdateInfo:
        """Update `parameters` in place. Reads its numbers from the device.

        Args:
            parameters: one or several floating-point tensors.
            gradients: of the same shapes.
            learning_rate: at least 0.
            constraint_radius: bound on the l2 norm of the whole change, at least 0.

        Raises:
            UsageError: if shapes differ, a number is negative or not finite, or a gradient is not finite.
        """
        weights = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        slopes = [gradients] if isinstance(gradients, Tensor) else list(gradients)
        _check(weights, slopes, learning_rate, constraint_radius)
        with torch.no_grad():
            snapshot = Snapshot(weights)
            snapshot.take()
            for update, slope in zip(snapshot.updates, slopes, strict=True):
                torch.mul(slope, -learning_rate, out=update)
            report = L2Ball().apply(snapshot.updates, snapshot.before, constraint_radius)
            applied = norm(snapshot.updates)
            snapshot.write_back(torch.ones_like(report.active))
        full, magnitude = report.norm.item(), applied.item()
        return ConstrainedUpdateInfo(
            update_magnitude=magnitude,
            constraint_active=bool(report.active.any()),
            constraint_radius=constraint_radius,
            quantization_error=quantization_error(weights, quantizer_for(1.58)),
            efficiency=constraint_radius / full if full > 0 else math.inf,
        )


def _check(weights: list[Tensor], slopes: list[Tensor], learning_rate: float, radius: float) -> None:
    if not weights or [w.shape for w in weights] != [s.shape for s in slopes]:
        raise UsageError("parameters and gradients have to be tensors of the same shapes, at least one")
    for name, number in (("learning_rate", learning_rate), ("constraint_radius", radius)):
        if not (math.isfinite(number) and number >= 0):
            raise UsageError(f"{name} has to be a finite number of at least 0, not {number}")
    if not math.isfinite(norm(slopes).item()):
        raise UsageError("a gradient is not finite; nothing was updated")
