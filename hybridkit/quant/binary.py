"""The 1-bit quantizer: codes in {-1, +1}, one scale per output channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from array_api_compat import array_namespace

from hybridkit.quant.protocol import QuantizedTensor
from hybridkit.quant.scales import as_float32, mean_magnitude
from hybridkit.quant.straight import StraightThrough

if TYPE_CHECKING:
    from torch import Tensor


class Binary(StraightThrough):
    """Scaled sign: scale = mean|w|, codes = sign(w), sign(0) = +1.

    From XNOR-Net (Rastegari et al. 2016, arXiv 1603.05279). mean|w| is the scale of least squared error for
    these codes. The gradient is the identity, as in BitNet (arXiv 2310.11453), not XNOR-Net's clip at |w| <=
    1: here the scale follows the latent weight, so that no fixed magnitude means "saturated", and a clipped
    weight could never come back.
    """

    levels = (-1, 1)
    bits = 1.0

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """Codes and scale of `weight` [N, K]."""
        xp = array_namespace(weight)
        codes = 2 * xp.astype(as_float32(weight) >= 0, xp.int8) - 1
        return QuantizedTensor(codes, mean_magnitude(weight, self.options.granularity))
