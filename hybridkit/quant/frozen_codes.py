"""The quantizer of a layer whose codes are frozen: its weight is the codes, its scales are trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridkit.quant.protocol import QuantizedTensor
from hybridkit.quant.scales import TINY, divisor


class FrozenCodes:
    """The codes that the weight holds, times `scale * gain`; the gain is what is trained, from 1 on.

    A gain is of size 1 whatever the layer, so that one learning rate suits all of them, also Adam's, which
    moves every parameter by the same amount. `dtype` is that of the weight whose place the codes took.
    """

    def __init__(
        self, levels: Sequence[int], bits: float, group_size: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        self.levels, self.bits, self.group_size, self.dtype = tuple(levels), bits, group_size, dtype

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """`scale` and `gain`, float32, one per row of `weight` [N, K], or per group, row by row: ones."""
        groups = -(-weight.shape[1] // self.group_size) if self.group_size else 1
        ones = torch.ones(weight.shape[0] * groups, device=weight.device)
        return {"scale": ones, "gain": ones.clone()}

    def quantize(self, weight: Tensor, *, scale: Tensor, gain: Tensor) -> QuantizedTensor:
        """The codes that `weight` [N, K] holds, and their scales; a gain at or below zero counts as tiny."""
        product = (scale * gain.clamp(min=0)).detach()
        scales = torch.where(scale == 0, product, divisor(product))
        if self.group_size:
            scales = scales.view(weight.shape[0], -1)
        return QuantizedTensor(weight.detach().to(torch.int8), scales, self.group_size)

    def fake_quantize(
        self, weight: Tensor, quantized: QuantizedTensor, *, scale: Tensor, gain: Tensor
    ) -> Tensor:
        """The dequantised weight, with the gradient of the gain."""
        relative = (1 + (gain - gain.detach()) / gain.detach().clamp(min=TINY)).view(quantized.scale.shape)
        scaled = QuantizedTensor(quantized.codes, quantized.scale * relative, self.group_size)
        return scaled.dequantize()


def follow_gain(output: Tensor, gain: Tensor, trailing: int) -> Tensor:
    """`output`, whose channels (`trailing` dimensions follow them) the gains scale, with their gradient.

    An output is linear in its channel's gain, so that no product with the activations is needed.
    """
    relative = (gain - gain.detach()) / gain.detach().clamp(min=TINY)
    return output + output.detach() * relative.reshape(-1, *[1] * trailing)
