"""Second moments of a layer's inputs, beside those that the layer has in the network it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
class Original:
    """What a block gives in the original network, and what reaches some of its layers there.

    inputs: of each layer, by batch, float32 [positions that count, K], or None where it does not run.
    """

    hidden: Hidden
    inputs: Mapping[nn.Module, Sequence[Tensor | None]]


@torch.no_grad()
def observed(
    block: nn.Module,
    layers: Sequence[nn.Module],
    hidden: Hidden,
    calls: Sequence[Call],
    counted: Sequence[Tensor | None],
) -> Original:
    """Run the original `block` once on each batch. counted: as `moments` takes it."""
    outputs: Hidden = []
    inputs: dict[nn.Module, list[Tensor | None]] = {layer: [] for layer in layers}

    def seen(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(inputs[layer]) == len(outputs):  # it may run again
            inputs[layer].append(positions(arguments[0], counted[len(outputs)]).float())

    handles = [layer.register_forward_pre_hook(seen) for layer in layers]
    try:
        for x, each in zip(hidden, calls, strict=True):
            outputs.append(each.run(block, x))
            for found in inputs.values():
                if len(found) < len(outputs):
                    found.append(None)
    finally:
        for handle in handles:
            handle.remove()
    return Original(outputs, inputs)


@torch.no_grad()
def moments(
    block: nn.Module,
    layer: nn.Module,
    hidden: Hidden,
    originals: Sequence[Tensor | None],
    calls: Sequence[Call],
    counted: Sequence[Tensor | None],
) -> Moments | None:
    """Of the inputs of `layer` in `block`; None where it does not run.

    hidden: of the block, by batch. originals: the layer's inputs in the original network. counted: for each
    batch the positions that count, bool [batch, positions], or None for all.
    """
    gram = cross = torch.zeros(())
    count = 0
    for place, (each, z) in enumerate(zip(calls, originals, strict=True)):
        x = None if z is None else _input(block, layer, hidden[place], each, counted[place])
        if x is None or z is None or x.shape != z.shape:
            continue
        gram, cross, count = gram + x.T @ x, cross + z.T @ x, count + len(x)
    return Moments(gram / count, cross / count, count) if count else None


class _Reached(Exception):  # noqa: N818 - no error
    pass


def _input(
    block: nn.Module, layer: nn.Module, hidden: Tensor, each: Call, counted: Tensor | None
) -> Tensor | None:
    """What the layer gets when it first runs in one batch, float32 [positions, K]; nothing runs after it."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0].float())
        raise _Reached

    handle = layer.register_forward_pre_hook(hook)
    try:
        each.run(block, hidden)
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
