"""How far an update has to shrink so that it stays inside its ball after rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HAIR = 1e-5
"""Relative safety for the rounding of norms (see `foreach.norms`) and of the scaled update."""


def rounding_unit(parameters: Sequence[Tensor]) -> float:
    """Half the spacing of floating-point numbers around 1, of the coarsest dtype among `parameters`."""
    return max((torch.finfo(p.dtype).eps / 2 for p in parameters), default=0.0)


def shrink(
    norm: Tensor, radius: Tensor | float, parameter_norm: Tensor, unit: float
) -> tuple[Tensor, Tensor]:
    """The factor for an update of size `norm`, and whether it is active; shapes broadcast.

    factor = 1 exactly where norm <= radius, else max(0, radius * (1 - 1e-5) - u * ||W||) / norm.

    u * ||W|| is the most that rounding W + delta to W's dtype can add to ||delta||: the *stored* parameters
    then keep the bound too. In fp32 that is 6e-8 of the parameters' norm. In bf16 it is 0.4 %, and a
    radius below it stops the step: keep fp32 parameters (autocast does) when training in low precision.
    """
    active = norm > radius
    room = (radius * (1 - HAIR) - unit * parameter_norm).clamp(min=0)
    return torch.where(active, room / norm, 1.0), active
