"""What quantising one layer costs a network: how far it moves the output, everything else as it was.

Two options of a layer are tried in the network. The others are read off a line through the two, logarithm of
harm over logarithm of the error of the layer's own output, tr((W - Q) H (W - Q)^T) with H the moments of its
inputs: near the original harm grows in proportion to that error. Weights are rounded: codes that were fitted
to the few tokens on which harms are measured would look better than they are.

While a layer of a block is tried, the blocks before it give what they gave; they do not run again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.blocks import main_blocks
from hybridkit.budget.options import Option
from hybridkit.calls import Inputs, call, evaluating, without_caches
from hybridkit.errors import UsageError
from hybridkit.quant.calibration.moments import positions
from hybridkit.quant.kinds import Layer
from hybridkit.quant.output_fit import damped, output_errors
from hybridkit.quant.protocol import quantize_weight

LEAST: Final = 1e-12  # an error or a harm below counts as this
FINE: Final = 4  # bits of one of the options that are tried


@dataclass(frozen=True, slots=True)
class Probe:
    """What a network is tried on.

    batches: its arguments. counted: the positions that count, bool [batch, positions], or None for all.
    distance: of outputs, batch by batch, from the original network's: 0 or more.
    """

    batches: Sequence[Inputs]
    counted: Sequence[Tensor | None]
    distance: Callable[[Sequence[Any]], float]


@torch.no_grad()
def harms(
    network: nn.Module,
    units: Sequence[Sequence[Layer]],
    options: Sequence[Option],
    probe: Probe,
    seen: Callable[[int], None] = lambda unit: None,
) -> NDArray[np.float64]:
    """float64 [units, options]; a unit is the layers of one weight. `seen` is called after each unit.

    The network is left as it was. Raises UsageError for a weight that is not finite.
    """
    tried = _tried(options)
    with evaluating(network), without_caches(network):
        run = _Run.of(network, probe)
        found = []
        for number, unit in enumerate(units):
            weight = network.get_parameter(unit[0].weight)
            if not torch.isfinite(weight).all():
                raise UsageError(f"layer {unit[0].name!r} has weights that are not finite")
            matrix = unit[0].matrix(weight).clone()
            place = run.block_of(unit)
            moments = damped(run.gram(unit, place))
            made = [quantize_weight(option.quantizer, matrix, None) for option in options]
            quantized = [each.dequantize() for each in made]
            errors = [float(output_errors(matrix, moments, each).clamp(min=0).sum()) for each in quantized]
            measured = {}
            for option in tried:
                _write(weight, unit[0], quantized[option])
                measured[option] = probe.distance(run.outputs(place))
                _write(weight, unit[0], matrix)
            found.append([_on_line(e, [(errors[o], harm) for o, harm in measured.items()]) for e in errors])
            seen(number)
    return np.array(found)


def outputs_of(network: nn.Module, batches: Sequence[Inputs]) -> list[Any]:
    """What a network gives, as `harms` runs it."""
    with evaluating(network), without_caches(network):
        return [call(network, batch) for batch in batches]


def _tried(options: Sequence[Option]) -> list[int]:
    """The indices of the first option of about 4 bits and of the first with fewest levels above two."""
    levels = [len(option.quantizer.levels) for option in options]
    fine = min(range(len(options)), key=lambda i: abs(math.log2(levels[i]) - FINE))
    coarse = min((i for i in range(len(options)) if levels[i] > 2), key=lambda i: levels[i], default=fine)
    return list(dict.fromkeys([fine, coarse]))


def _on_line(error: float, points: Sequence[tuple[float, float]]) -> float:
    """The harm of an error, from one or two points (error, harm): on the line through their logarithms."""
    known = sorted((math.log(max(e, LEAST)), math.log(max(h, LEAST))) for e, h in points)
    (x0, y0), (x1, y1) = known[0], known[-1]
    slope = (y1 - y0) / (x1 - x0) if x1 - x0 > 1e-6 else 1.0
    x = math.log(max(error, LEAST))
    if x <= x0:
        return math.exp(y0 + (x - x0))  # so near the original harm is proportional to error
    if x <= x1:
        return math.exp(y0 + (x - x0) * slope)
    return math.exp(y1 + (x - x1) * max(slope, 1.0))


def _write(weight: Tensor, layer: Layer, matrix: Tensor) -> None:
    oriented = layer.oriented(weight)
    oriented.copy_(matrix.view(oriented.shape))


@dataclass(frozen=True, slots=True)
class _Run:
    """A network on the probe, from any of its blocks on.

    given: what each block gave, by batch. layers: the block that a module is in.
    """

    network: nn.Module
    probe: Probe
    blocks: Sequence[nn.Module]
    given: Sequence[Sequence[Any]]
    layers: Mapping[nn.Module, int]

    @classmethod
    def of(cls, network: nn.Module, probe: Probe) -> _Run:
        try:
            blocks = main_blocks(network)
        except UsageError:
            blocks = []
        given: list[list[Any]] = [[] for _ in blocks]
        handles = [
            block.register_forward_hook(lambda _, __, output, at=at: given[at].append(output))
            for at, block in enumerate(blocks)
        ]
        try:
            for batch in probe.batches:
                call(network, batch)
        finally:
            for handle in handles:
                handle.remove()
        if any(len(outputs) != len(probe.batches) for outputs in given):  # a block that runs twice, or never
            blocks, given = [], []
        layers = {module: at for at, block in enumerate(blocks) for module in block.modules()}
        return cls(network, probe, blocks, given, layers)

    def block_of(self, unit: Sequence[Layer]) -> int:
        """The block that has to run for a unit to matter; 0 where it is in none."""
        places = {self.layers.get(self.network.get_submodule(layer.name), 0) for layer in unit}
        return min(places)

    def outputs(self, place: int) -> list[Any]:
        """What the network gives where the blocks before `place` give what they gave."""
        found = []
        for number, batch in enumerate(self.probe.batches):
            with _skipping(self.blocks[:place], [outputs[number] for outputs in self.given[:place]]):
                found.append(call(self.network, batch))
        return found

    def gram(self, unit: Sequence[Layer], place: int) -> Tensor:
        """The moments of a linear layer's inputs, [K, K]; zeros for other kinds, or where it does not run."""
        K = math.prod(unit[0].shape[1:])
        total = torch.zeros(K, K)
        linear = [self.network.get_submodule(layer.name) for layer in unit if layer.kind == "linear"]
        if not linear:
            return total
        count = 0
        for number in range(len(self.probe.batches)):
            for x in self._inputs(linear, place, number):
                rows = positions(x.float(), self.probe.counted[number])
                total, count = total + rows.T @ rows, count + len(rows)
        return total / max(count, 1)

    def _inputs(self, layers: Sequence[nn.Module], place: int, number: int) -> list[Tensor]:
        """What layers get in one batch; nothing runs once all of them have."""
        seen: list[Tensor] = []

        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen.append(arguments[0])
            if len(seen) == len(layers):
                raise _Enough

        handles = [layer.register_forward_pre_hook(hook) for layer in layers]
        try:
            with _skipping(self.blocks[:place], [outputs[number] for outputs in self.given[:place]]):
                call(self.network, self.probe.batches[number])
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return seen


class _Enough(Exception):  # noqa: N818 - no error
    pass


@contextlib.contextmanager
def _skipping(blocks: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """In this context each block gives its output without running."""
    own = [block.__dict__.get("forward") for block in blocks]
    for block, output in zip(blocks, outputs, strict=True):
        block.forward = lambda *_, output=output, **__: output
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
