"""Uniform quantisation to 2, 4 or 8 bits, symmetric about zero, per channel, tensor or group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from hybridkit.errors import UsageError
from hybridkit.options import option
from hybridkit.quant.protocol import Granularity, QuantizedTensor, straight_through
from hybridkit.quant.scales import TINY, round_to_codes

# Shares of the largest magnitude that the search tries as the clipping point.
CLIPS = tuple(0.88**i for i in range(16))


class NBit:
    """codes = clip(round(w / scale), -2^(b-1), 2^(b-1) - 1).

    ONNX Runtime's MatMulNBits stores exactly these, unsigned, with zero point 2^(b-1).
    `scale="absmax"` maps the largest magnitude to 2^(b-1) - 1. `scale="mse"` also tries to clip it, down to
    15 %, and takes the clip of least squared error, which two bits need (the optimum that OCTAV, arXiv
    2206.06501, finds by Newton's method, here by search); at 8 bits rounding is so fine that clipping never
    pays, and absmax is taken. The gradient is straight through.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """What can be set."""

        bits: Literal[2, 4, 8] = option(4, "bits per weight")
        granularity: Granularity = option("channel", "one scale per output channel, or one per tensor")
        group_size: Annotated[int, Ge(0)] = option(0, "weights per scale along the row; 0: the whole row")
        scale: Literal["mse", "absmax"] = option(
            "mse", "clip for least squared error, or keep the largest weight"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        if self.options.group_size and self.options.granularity == "tensor":
            raise UsageError("nbit: group_size and granularity=tensor contradict each other; set one of them")
        half = 2 ** (self.options.bits - 1)
        self.levels = tuple(range(-half, half))
        self.bits = float(self.options.bits)

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """Codes of `weight` [N, K] and its scale, [N] or [N, ceil(K / group_size)]."""
        channels, width = weight.shape
        values = weight.detach().float()
        group = self.options.group_size
        if group:
            groups = F.pad(values, (0, -width % group)).view(channels, -(-width // group), group)
        else:
            groups = values.reshape(
                (channels, 1, width) if self.options.granularity == "channel" else (1, 1, -1)
            )
        scale = self._scale(groups)
        codes = round_to_codes(groups, scale, self.levels[0], self.levels[-1])
        if group:
            codes = codes.view(channels, groups.shape[1] * group)[:, :width].contiguous()
            return QuantizedTensor(codes, scale[:, :, 0], group)
        return QuantizedTensor(codes.view(channels, width), scale.reshape(-1).expand(channels).contiguous())

    def _scale(self, groups: Tensor) -> Tensor:
        """The scale of each group of float32 [..., G], as [..., 1]."""
        if groups.numel() == 0:
            return groups.new_zeros((*groups.shape[:-1], 1))
        widest = groups.abs().amax(dim=-1, keepdim=True) / self.levels[-1]
        if self.options.scale == "absmax" or self.options.bits == 8:
            return widest
        unit = groups / widest.clamp(min=TINY)  # so that no square overflows or vanishes
        best, least = torch.ones_like(widest), torch.full_like(widest, torch.inf)
        for clip in CLIPS:
            rounded = torch.clamp(torch.round(unit / clip), self.levels[0], self.levels[-1])
            error = (rounded * clip - unit).square_().sum(dim=-1, keepdim=True)
            best = torch.where(error < least, clip, best)
            least = torch.minimum(error, least)
        return widest * best

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor) -> Tensor:
        """The dequantised weight; identity as gradient."""
        return straight_through(weight, quantized)
