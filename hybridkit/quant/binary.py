"""The 1-bit quantizer: codes in {-1, +1}, one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from array_api_compat import array_namespace

from hybridkit.options import option
from hybridkit.quant.protocol import Granularity, QuantizedTensor, straight_through
from hybridkit.quant.scales import as_float32, mean_magnitude

if TYPE_CHECKING:
    from torch import Tensor


class Binary:
    """Scaled sign: scale = mean|w|, codes = sign(w), sign(0) = +1.

    From XNOR-Net (Rastegari et al. 2016, arXiv 1603.05279). mean|w| is the scale of least squared error for
    these codes. The gradient is the identity, as in BitNet (arXiv 2310.11453), not XNOR-Net's clip at |w| <=
    1: here the scale follows the latent weight, so that no fixed magnitude means "saturated", and a clipped
    weight could never come back.
    """

    levels = (-1, 1)
    bits = 1.0
    takes_numpy: ClassVar = True

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """What can be set."""

        granularity: Granularity = option("channel", "one scale per output channel, or one per tensor")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """Codes and scale of `weight` [N, K]."""
        xp = array_namespace(weight)
        codes = 2 * xp.astype(as_float32(weight) >= 0, xp.int8) - 1
        return QuantizedTensor(codes, mean_magnitude(weight, self.options.granularity))

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor) -> Tensor:
        """The dequantised weight; identity as gradient."""
        return straight_through(weight, quantized)
