"""The quantizer of a layer whose codes are tuned: its weight says, in units of a scale, where each heads.

A code is the level next to its heading, and the gradient of the one is taken for that of the other (straight
through, arXiv 1308.3432). Headings start inside the cells of the codes that were found, so that nothing has
changed before the first step, and on the side of the weight that the code stands for (as AutoRound, arXiv
2309.05516, lets rounding of a weight move). A step of one size then suits the layers of any network.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from torch import Tensor, nn

from hybridkit.quant.frozen_codes import FrozenCodes, follow
from hybridkit.quant.layers import QATLayer
from hybridkit.quant.output_fit import Grid
from hybridkit.quant.protocol import QuantizedTensor
from hybridkit.quant.scales import divisor

INSIDE: Final = 0.45  # of the step between two levels: how far from its code a heading starts at most


class MovingCodes:
    """The codes next to what the weight holds, as frozen codes have them; all of it is trained."""

    def __init__(self, frozen: FrozenCodes) -> None:
        self.frozen = frozen
        self.levels = frozen.levels
        self.bits, self.group_size = frozen.bits, frozen.group_size
        self.grid = Grid.of(frozen.levels)

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """Those of frozen codes."""
        return self.frozen.parameters(weight)

    def quantize(self, weight: Tensor, **parameters: Tensor) -> QuantizedTensor:
        """The codes next to the headings [N, K], and their scales."""
        return self.frozen.quantize(self.grid.nearest(weight.detach()), **parameters)

    def fake_quantize(
        self,
        weight: Tensor,
        quantized: QuantizedTensor,
        **parameters: Tensor,
    ) -> Tensor:
        """The dequantised weight, with the gradients of all of it; of headings within the levels."""
        half = self.grid.step / 2
        heading = weight.clamp(self.grid.low - half, self.grid.high + half)
        codes = quantized.codes.to(weight.dtype) + (heading - heading.detach())
        return replace(follow(quantized, **parameters), codes=codes).dequantize()


def loosen_(layer: QATLayer, weight: Tensor) -> None:
    """Let the frozen codes of `layer` move, from where `weight` [N, K], which they stand for, has them."""
    frozen, found = layer.quantizer, layer.quantized_weight()
    assert isinstance(frozen, FrozenCodes)
    moving: Any = MovingCodes(frozen)
    rest = weight.float() if found.offset is None else weight.float() - found.per_weight(found.offset)
    codes = found.codes.float()
    reach = INSIDE * moving.grid.step
    heading = codes + (rest / divisor(found.per_weight(found.scale)) - codes).clamp(-reach, reach)
    _set(layer, heading)
    layer.quantizer = moving


def settle_(layer: QATLayer) -> None:
    """Freeze codes that moved, where they are."""
    moving: Any = layer.quantizer
    _set(layer, layer.quantized_weight().codes)
    layer.quantizer = moving.frozen


def _set(layer: QATLayer, matrix: Tensor) -> None:
    weight = matrix.view(layer.oriented_weight().shape)
    stored = weight.t().contiguous() if layer.transposed else weight
    layer.weight = nn.Parameter(stored, requires_grad=False)
