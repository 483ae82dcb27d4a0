"""The quantizer of a layer whose codes are frozen: its weight is the codes, its scales are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hybridkit.quant.protocol import QuantizedTensor
from hybridkit.quant.scales import TINY, divisor


class FrozenCodes:
    """The codes that the weight holds, times `scale * gain`, plus `offset + shift * scale` where one is.

    What is trained is the gain, from 1 on, and the shift, from 0 on: of these sizes whatever the layer, so
    that one learning rate suits all of them, also Adam's, which moves every parameter by the same amount.
    `dtype` is that of the weight whose place the codes took, `codec` what the quantizer that made them names.
    """

    def __init__(
        self,
        levels: Sequence[int],
        bits: float,
        group_size: int = 0,
        dtype: torch.dtype = torch.float32,
        has_offset: bool = False,
        codec: str | None = None,
    ) -> None:
        self.levels, self.bits, self.group_size, self.dtype = tuple(levels), bits, group_size, dtype
        self.has_offset, self.codec = has_offset, codec

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """`scale` and `gain`, float32, one per row of `weight` [N, K], or per group, row by row: ones.

        With offsets also `offset` and `shift`, zeros.
        """
        groups = -(-weight.shape[1] // self.group_size) if self.group_size else 1
        ones = torch.ones(weight.shape[0] * groups, device=weight.device)
        found = {"scale": ones, "gain": ones.clone()}
        if self.has_offset:
            found |= {"offset": torch.zeros_like(ones), "shift": torch.zeros_like(ones)}
        return found

    def quantize(
        self,
        weight: Tensor,
        *,
        scale: Tensor,
        gain: Tensor,
        **offsets: Tensor,
    ) -> QuantizedTensor:
        """The codes that `weight` [N, K] holds, and their scales; a gain at or below zero counts as tiny."""
        product = (scale * gain.clamp(min=0)).detach()
        scales = torch.where(scale == 0, product, divisor(product))
        codes = weight.detach().to(torch.int8)
        offset = (offsets["offset"] + offsets["shift"] * scale).detach() if self.has_offset else None
        found = QuantizedTensor(codes, scales, self.group_size, offset)
        if not self.group_size:
            return found
        return found.with_numbers(lambda numbers: numbers.view(weight.shape[0], -1))

    def fake_quantize(
        self,
        weight: Tensor,
        quantized: QuantizedTensor,
        **parameters: Tensor,
    ) -> Tensor:
        """The dequantised weight, with the gradient of the gain and of the shift."""
        return follow(quantized, **parameters).dequantize()


def follow(
    quantized: QuantizedTensor, *, scale: Tensor, gain: Tensor, shift: Tensor | None = None, **_: Tensor
) -> QuantizedTensor:
    """What frozen codes are quantised to, with the gradients of the gain and of the shift."""
    relative = (1 + (gain - gain.detach()) / gain.detach().clamp(min=TINY)).view(quantized.scale.shape)
    offset = quantized.offset
    if offset is not None and shift is not None:
        offset = offset + ((shift - shift.detach()) * scale).view(offset.shape)
    return replace(quantized, scale=quantized.scale * relative, offset=offset)


def follow_gain(output: Tensor, gain: Tensor, trailing: int) -> Tensor:
    """`output`, whose channels (`trailing` dimensions follow them) the gains scale, with their gradient.

    An output is linear in its channel's gain, so that no product with the activations is needed.
    """
    relative = (gain - gain.detach()) / gain.detach().clamp(min=TINY)
    return output + output.detach() * relative.reshape(-1, *[1] * trailing)
