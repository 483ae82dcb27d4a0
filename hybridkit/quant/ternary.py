"""Ternary quantizers: codes in {-1, 0, +1}, one scale per output channel (log2 3 = 1.58 bits).

All compute in float32, whatever the dtype of the latent weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Gt
from array_api_compat import array_namespace, device

from hybridkit.options import option
from hybridkit.quant.protocol import Granularity, QuantizedTensor
from hybridkit.quant.scales import (
    TINY,
    Array,
    as_float32,
    mean_magnitude,
    per_channel,
    round_to_codes,
    scale_rows,
)
from hybridkit.quant.straight import StraightThrough

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = (-1, 0, 1)
BITS = math.log2(3)


class TernaryAbsmean(StraightThrough):
    """BitNet b1.58: scale = mean|w|, codes = round(clip(w / scale, -1, 1)).

    From Ma et al. 2024, arXiv 2402.17764. The gradient is straight through. The paper takes one scale per
    tensor (`granularity="tensor"`); one per channel costs nothing at inference and is closer to the weight.
    """

    levels = LEVELS
    bits = BITS

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(StraightThrough.Options):
        """What can be set."""

        scale_multiplier: Annotated[float, Gt(0)] = option(
            1.0, "multiplies mean|w|; above 1 gives more zeros"
        )

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """Codes and scale of `weight` [N, K]; the scale of an all-zero row is 0."""
        scale = mean_magnitude(weight, self.options.granularity) * self.options.scale_multiplier
        return QuantizedTensor(round_to_codes(as_float32(weight), scale[:, None], -1, 1), scale)


class TernaryMSE(StraightThrough):
    """The threshold and the scale of least squared error (TWN, arXiv 1605.04711), exactly.

    With the magnitudes of a row in descending order and c_k the sum of the first k, keeping k of them with
    scale c_k / k leaves the error ||w||^2 - c_k^2 / k. TWN approximates the maximum of c_k^2 / k; here every
    k is tried. The gradient is straight through.
    """

    levels = LEVELS
    bits = BITS

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """Codes and scale of `weight` [N, K]; the scale of an all-zero row is 0."""
        codes, scale = least_squares_ternary(scale_rows(weight, self.options.granularity))
        return QuantizedTensor(codes.reshape(weight.shape), per_channel(scale, weight.shape[0]))


def least_squares_ternary(rows: Array) -> tuple[Array, Array]:
    """Ternary codes (int8 [R, K]) and scales [R] that minimise ||row - scale * codes||, for float32 rows.

    Sorting costs O(K log K) a row; sums run in float64 so that long rows lose nothing.
    """
    xp = array_namespace(rows)
    R, K = rows.shape
    if R * K == 0:
        return xp.astype(rows, xp.int8), xp.sum(rows, axis=1)
    magnitude = abs(rows)
    ordered = xp.sort(magnitude, axis=1, descending=True, stable=False)
    totals = xp.cumulative_sum(ordered, axis=1, dtype=xp.float64)
    counts = xp.arange(1, K + 1, device=device(rows), dtype=xp.float64)
    kept = xp.argmax(totals * totals / counts, axis=1, keepdims=True)
    nonzero = (magnitude >= xp.take_along_axis(ordered, kept, axis=1)) & (magnitude > 0)
    total = xp.sum(magnitude * nonzero, axis=1, dtype=xp.float64)
    scale = xp.astype(total / xp.clip(xp.sum(nonzero, axis=1), 1), xp.float32)
    return xp.astype(nonzero & (rows > 0), xp.int8) - xp.astype(nonzero & (rows < 0), xp.int8), scale


class TernarySparse(StraightThrough):
    """3:4-sparse: of every four weights in a row the smallest is 0, the others are their signs; 1.25 bits.

    From Sherry (arXiv 2601.07892). Whatever is left out, three codes in four are not 0, so
    that the scale of least squared error is the mean magnitude of what is kept, and the smallest is best left
    out: codes and scale are those of least error under the pattern. The gradient is straight through. What
    the paper anneals beside the codes in training is the ramp from full precision here.

    Convolution weights have their fours along C, kh, kw. Where a row ends with less than four, none is 0.
    """

    levels = LEVELS
    bits = 5 / 4
    codec: ClassVar = "sparse34"

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """Codes and scale of `weight` [N, K]; the scale of an all-zero row is 0."""
        values = as_float32(weight)
        xp = array_namespace(values)
        N, K = values.shape
        kept = xp.ones_like(values, dtype=xp.bool)
        whole = K - K % 4
        if N * whole:
            fours = abs(values[:, :whole]).reshape(N, -1, 4)
            least = xp.argmin(fours, axis=2, keepdims=True)
            places = xp.arange(4, device=device(values))[None, None, :]
            kept[:, :whole] = (places != least).reshape(N, whole)
        codes = xp.where(values < 0, -1, 1) * kept
        rows = scale_rows(xp.where(kept, abs(values), 0.0), self.options.granularity)
        count = xp.sum(scale_rows(xp.astype(kept, xp.float32), self.options.granularity), axis=1)
        scale = xp.sum(rows, axis=1) / xp.clip(count, 1)
        return QuantizedTensor(xp.astype(codes, xp.int8), per_channel(scale, N))


class TernaryLearned:
    """A learned step per channel: LSQ (arXiv 1902.08153) with ParetoQ's bins (arXiv 2502.02631).

    codes = round(clip(w / s, -1, 1)). The step's gradient is LSQ's: code - w / s where |w| <= s and the code
    itself beyond, times 1 / sqrt(number of weights per step). The weight has a gradient in ParetoQ's
    stretched range, |w| <= 1.5 s, where the three bins are equally wide; LSQ's own, |w| <= s, would stop
    weights in the middle of the outer bins. The step starts at the scale of least squared error.
    """

    levels = LEVELS
    bits = BITS
    version: ClassVar = 2  # gradients are rounded elsewhere since
    takes_numpy: ClassVar = True

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
        xp = array_namespace(step)
        return {"step": xp.where(step > 0, step, xp.full_like(step, fallback))}

    def quantize(self, weight: Tensor, *, step: Tensor) -> QuantizedTensor:
        """Codes and scale of `weight` [N, K] for a step [N] or [1]; one at or below zero counts as tiny."""
        scale = per_channel(array_namespace(step).clip(as_float32(step), TINY), weight.shape[0])
        return QuantizedTensor(round_to_codes(as_float32(weight), scale[:, None], -1, 1), scale)

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor, *, step: Tensor) -> Tensor:
        """The dequantised weight, a clipped straight-through gradient to `weight` and LSQ's to `step`."""
        from hybridkit.quant.learned_step import LearnedStep

        value: Tensor = LearnedStep.apply(weight, step, quantized)  # type: ignore[no-untyped-call]
        return value
