"""The quantizer of a layer whose codes are tuned: its weight says, in units of a scale, where each heads.

A code is the level next to its heading, and the gradient of the one is taken for that of the other (straight
through, arXiv 1308.3432). Headings start inside the cells of the codes that were found, so that nothing has
changed before the first step, and on the side of the weight that the code stands for (as AutoRound, arXiv
2309.05516, lets rounding of a weight move). A step of one size then suits the layers of any network.
"""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn

from hybridkit.quant.frozen_codes import FrozenCodes
from hybridkit.quant.layers import QATLayer
from hybridkit.quant.output_fit import Grid, per_weight
from hybridkit.quant.protocol import QuantizedTensor
from hybridkit.quant.scales import TINY, divisor

INSIDE: Final = 0.45  # of the step between two levels: how far from its code a heading starts at most


class MovingCodes:
    """The codes next to what the weight holds, times `scale * gain`; both are trained."""

    def __init__(self, frozen: FrozenCodes) -> None:
        self.frozen = frozen
        self.levels = frozen.levels
        self.bits, self.group_size = frozen.bits, frozen.group_size
        self.grid = Grid.of(frozen.levels)

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """Those of frozen codes."""
        return self.frozen.parameters(weight)

    def quantize(self, weight: Tensor, *, scale: Tensor, gain: Tensor) -> QuantizedTensor:
        """The codes next to the headings [N, K], and their scales."""
        return self.frozen.quantize(self.grid.nearest(weight.detach()), scale=scale, gain=gain)

    def fake_quantize(
        self, weight: Tensor, quantized: QuantizedTensor, *, scale: Tensor, gain: Tensor
    ) -> Tensor:
        """The dequantised weight, with the gradients of the gains and, within the levels, of the headings."""
        relative = (1 + (gain - gain.detach()) / gain.detach().clamp(min=TINY)).view(quantized.scale.shape)
        scales = (quantized.scale * relative).view(weight.shape[0], -1)
        half = self.grid.step / 2
        heading = weight.clamp(self.grid.low - half, self.grid.high + half)
        codes = quantized.codes.to(weight.dtype) + (heading - heading.detach())
        spread: Tensor = per_weight(scales, self.group_size or weight.shape[1], weight.shape[1])
        return codes * spread


def loosen_(layer: QATLayer, weight: Tensor) -> None:
    """Let the frozen codes of `layer` move, from where `weight` [N, K], which they stand for, has them."""
    frozen, found = layer.quantizer, layer.quantized_weight()
    assert isinstance(frozen, FrozenCodes)
    moving: Any = MovingCodes(frozen)
    N, K = weight.shape
    scale = divisor(per_weight(found.scale.view(N, -1), found.group_size or K, K))
    codes = found.codes.float()
    reach = INSIDE * moving.grid.step
    heading = codes + (weight.float() / scale - codes).clamp(-reach, reach)
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
