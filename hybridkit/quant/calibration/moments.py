"""Second moments of a layer's inputs, beside those that the layer has in the network it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridkit.quant.calibration.streams import Call, Hidden
from hybridkit.quant.output_fit import damped


@dataclass(frozen=True, slots=True)
class Moments:
    """Means over positions: of x x^T, and of z x^T, with z the input in the original. float32 [K, K]."""

    gram: Tensor
    cross: Tensor
    count: int

    def target(self, weight: Tensor) -> Tensor:
        """The weight [N, K] whose outputs on x are nearest to those of `weight` on z, damped as H is.

        argmin_V E ||V x - W z||^2 = W E[z x^T] E[x x^T]^-1 (GPTAQ, arXiv 2504.02692).
        """
        regular = damped(self.gram)
        moved = weight.double() @ (self.cross + (regular - self.gram)).double()
        found: Tensor = torch.linalg.solve(regular.double(), moved, left=False).float()
        return found


@dataclass(frozen=True, slots=True)
class Side:
    """One of two blocks that are run: with the layer that is watched, and its inputs by batch."""

    block: nn.Module
    layer: nn.Module
    hidden: Hidden


@torch.no_grad()
def moments(
    ours: Side, original: Side, calls: Sequence[Call], counted: Sequence[Tensor | None]
) -> Moments | None:
    """Of the inputs of `ours.layer`; None where it does not run.

    counted: for each batch the positions that count, bool [batch, positions], or None for all.
    """
    gram = cross = torch.zeros(())
    count = 0
    for place, each in enumerate(calls):
        x = _input(ours, place, each, counted[place])
        z = _input(original, place, each, counted[place])
        if x is None or z is None or x.shape != z.shape:
            continue
        gram, cross, count = gram + x.T @ x, cross + z.T @ x, count + len(x)
    return Moments(gram / count, cross / count, count) if count else None


class _Reached(Exception):  # noqa: N818 - no error
    pass


def _input(side: Side, place: int, each: Call, counted: Tensor | None) -> Tensor | None:
    """What the layer gets when it first runs in one batch, float32 [positions, K]; nothing runs after it."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0].float())
        raise _Reached

    handle = side.layer.register_forward_pre_hook(hook)
    try:
        each.run(side.block, side.hidden[place])
    except _Reached:
        return positions(seen[0], counted)
    finally:
        handle.remove()
    return None


def positions(x: Tensor, counted: Tensor | None) -> Tensor:
    """[..., K] as [positions, K], without those that do not count."""
    if counted is not None and x.shape[:-1] == counted.shape:
        return x[counted]
    return x.flatten(0, -2)
