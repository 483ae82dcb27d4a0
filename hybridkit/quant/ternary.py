"""Ternary quantizers: codes in {-1, 0, +1}, one scale per output channel (log2 3 = 1.58 bits).

All compute in float32, whatever the dtype of the latent weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from hybridkit.options import option
from hybridkit.quant.protocol import Granularity, QuantizedTensor, straight_through
from hybridkit.quant.scales import TINY, mean_magnitude, per_channel, round_to_codes, scale_rows

LEVELS = (-1, 0, 1)
BITS = math.log2(3)


class TernaryAbsmean:
    """BitNet b1.58: scale = mean|w|, codes = round(clip(w / scale, -1, 1)).

    From Ma et al. 2024, arXiv 2402.17764. The gradient is straight through. The paper takes one scale per
    tensor (`granularity="tensor"`); one per channel costs nothing at inference and is closer to the weight.
    """

    levels = LEVELS
    bits = BITS

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """What can be set."""

        granularity: Granularity = option("channel", "one scale per output channel, or one per tensor")
        scale_multiplier: Annotated[float, Gt(0)] = option(
            1.0, "multiplies mean|w|; above 1 gives more zeros"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """Codes and scale of `weight` [N, K]; the scale of an all-zero row is 0."""
        scale = mean_magnitude(weight, self.options.granularity) * self.options.scale_multiplier
        return QuantizedTensor(round_to_codes(weight.detach().float(), scale[:, None], -1, 1), scale)

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor) -> Tensor:
        """The dequantised weight; identity as gradient."""
        return straight_through(weight, quantized)


class TernaryMSE:
    """The threshold and the scale of least squared error (TWN, arXiv 1605.04711), exactly.

    With the magnitudes of a row in descending order and c_k the sum of the first k, keeping k of them with
    scale c_k / k leaves the error ||w||^2 - c_k^2 / k. TWN approximates the maximum of c_k^2 / k; here every
    k is tried. The gradient is straight through.
    """

    levels = LEVELS
    bits = BITS

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
        """Codes and scale of `weight` [N, K]; the scale of an all-zero row is 0."""
        codes, scale = least_squares_ternary(scale_rows(weight, self.options.granularity))
        return QuantizedTensor(codes.view(weight.shape), per_channel(scale, weight.shape[0]))

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor) -> Tensor:
        """The dequantised weight; identity as gradient."""
        return straight_through(weight, quantized)


def least_squares_ternary(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Ternary codes (int8 [R, K]) and scales [R] that minimise ||row - scale * codes||, for float32 rows.

    Sorting costs O(K log K) a row; sums run in float64 so that long rows lose nothing.
    """
    if rows.numel() == 0:
        return rows.to(torch.int8), rows.new_zeros(rows.shape[0])
    magnitude = rows.abs()
    ordered = magnitude.sort(dim=1, descending=True).values
    totals = ordered.cumsum(dim=1, dtype=torch.float64)
    counts = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=torch.float64)
    kept = (totals.square() / counts).argmax(dim=1, keepdim=True)
    nonzero = (magnitude >= ordered.gather(1, kept)) & (magnitude > 0)
    total = (magnitude * nonzero).sum(dim=1, dtype=torch.float64)
    scale = (total / nonzero.sum(dim=1).clamp(min=1)).float()
    return (torch.sign(rows) * nonzero).to(torch.int8), scale


class TernaryLearned:
    """A learned step per channel: LSQ (arXiv 1902.08153) with ParetoQ's bins (arXiv 2502.02631).

    codes = round(clip(w / s, -1, 1)). The step's gradient is LSQ's: code - w / s where |w| <= s and the code
    itself beyond, times 1 / sqrt(number of weights per step). The weight has a gradient in ParetoQ's
    stretched range, |w| <= 1.5 s, where the three bins are equally wide; LSQ's own, |w| <= s, would stop
    weights in the middle of the outer bins. The step starts at the scale of least squared error.
    """

    levels = LEVELS
    bits = BITS

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """What can be set."""

        granularity: Granularity = option("channel", "one step per output channel, or one per tensor")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """`step`: float32 [N], or [1] by tensor; 1 / sqrt(K) for a row of zeros, so that it can learn."""
        rows = scale_rows(weight, self.options.granularity)
        step = least_squares_ternary(rows)[1]
        fallback = 1 / math.sqrt(max(weight.shape[1], 1))
        return {"step": torch.where(step > 0, step, fallback)}

    def quantize(self, weight: Tensor, *, step: Tensor) -> QuantizedTensor:
        """Codes and scale of `weight` [N, K] for a step [N] or [1]; one at or below zero counts as tiny."""
        scale = per_channel(step.detach().float().clamp(min=TINY), weight.shape[0])
        return QuantizedTensor(round_to_codes(weight.detach().float(), scale[:, None], -1, 1), scale)

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor, *, step: Tensor) -> Tensor:
        """The dequantised weight, a clipped straight-through gradient to `weight` and LSQ's to `step`."""
        value = quantized.dequantize()
        codes = quantized.codes.float()
        with torch.no_grad():
            ratio = weight / quantized.scale[:, None]
            gradient_scale = math.sqrt(step.numel() / max(weight.numel(), 1))
            slope = torch.where(ratio.abs() <= 1, codes - ratio, codes) * gradient_scale
        # Both terms are zero in value and carry the gradients.
        by_weight = (ratio.abs() <= 1.5) * (weight - weight.detach())
        by_step = slope * (step - step.detach()).reshape(-1, 1)
        return value + by_weight + by_step
