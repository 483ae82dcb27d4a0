"""Uniform quantisation to 2, 3, 4 or 8 bits per channel, tensor or group, about zero or with an offset."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final, Literal, cast

from annotated_types import Ge
from array_api_compat import array_namespace

from hybridkit.errors import UsageError
from hybridkit.options import option
from hybridkit.quant.groups import InGroups
from hybridkit.quant.protocol import Granularity, QuantizedTensor
from hybridkit.quant.scales import TINY, Array, per_channel, round_to_codes, scale_rows
from hybridkit.quant.straight import StraightThrough

if TYPE_CHECKING:
    from torch import Tensor

    from hybridkit.quant.protocol import Quantizer

# What the search tries: so many scales, from the one that maps the largest magnitude to the level furthest on
# the shorter side; after these many the one that maps it to the level furthest on the longer side.
TRIED: Final = 16
TO_LONGER: Final = {2: 5, 3: 3, 4: 2}
NARROWEST: Final = {2: 0.4, 3: 0.5, 4: 0.7}  # with an offset: the least range that is tried, by bits


class NBit(StraightThrough):
    """codes = clip(round(w / scale), -2^(b-1), 2^(b-1) - 1); of 3 bits -3 to 2.

    Three codes of six levels fill a byte, so that 3 bits take 2.67 in a file; in a runtime they take 4.
    ONNX Runtime's MatMulNBits and our operators store exactly these, unsigned, with zero point 2^(b-1).
    `scale="absmax"` maps the largest magnitude to 2^(b-1) - 1. `scale="mse"` also tries to clip it and takes
    the clip of least squared error, which two bits need (the optimum that OCTAV, arXiv 2206.06501, finds by
    Newton's method, here by search), with either sign of the scale: the side with one level more is then that
    of the longer tail (as in ggml's Q4_0), which takes a fifth off the error in groups of 32 and costs no
    byte. At 8 bits rounding is so fine that neither pays, and absmax is taken. The gradient is straight
    through.

    With `offset` codes = clip(round((w - offset) / scale), ...) and the levels span the range of the weights,
    wherever it lies (what others call asymmetric, or a zero point, here of any value: GGUF's Q4_1). "absmax"
    then takes the whole range; "mse" narrows it, each time with the scale and offset of least squared error
    for the codes that come out (as `make_qkx2_quants` of ggml), and takes the best.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """What can be set."""

        bits: Literal[2, 3, 4, 8] = option(4, "bits per weight; 3: six levels in 2.67 bits")
        granularity: Granularity = option("channel", "one scale per output channel, or one per tensor")
        group_size: Annotated[int, Ge(0)] = option(0, "weights per scale along the row; 0: the whole row")
        scale: Literal["mse", "absmax"] = option(
            "mse", "clip for least squared error, or keep the largest weight"
        )
        offset: bool = option(False, "levels anywhere, not about zero: a second number beside each scale")

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        if self.options.group_size and self.options.granularity == "tensor":
            raise UsageError("nbit: group_size and granularity=tensor contradict each other; set one of them")
        half = 3 if self.options.bits == 3 else 2 ** (self.options.bits - 1)
        self.levels = tuple(range(-half, half))
        self.bits = math.log2(2 * half)

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """Codes of `weight` [N, K] and its scale, [N] or [N, ceil(K / group_size)]."""
        if self.options.group_size:
            alone = cast("Quantizer", NBit(replace(self.options, group_size=0)))
            return InGroups(alone, self.options.group_size).quantize(weight)
        rows = scale_rows(weight, self.options.granularity)
        if self.options.offset:
            scale, offset = self._scale_and_offset(rows)
            codes = round_to_codes(rows - offset, scale, self.levels[0], self.levels[-1])
            N = weight.shape[0]
            return QuantizedTensor(
                codes.reshape(weight.shape), per_channel(scale, N), offset=per_channel(offset, N)
            )
        scale = self._scale(rows)
        codes = round_to_codes(rows, scale, self.levels[0], self.levels[-1])
        return QuantizedTensor(codes.reshape(weight.shape), per_channel(scale, weight.shape[0]))

    def _scale(self, rows: Array) -> Array:
        """The scale of each row of float32 [N, K], as [N, 1]."""
        xp = array_namespace(rows)
        if 0 in rows.shape:
            return xp.sum(rows, axis=-1, keepdims=True)
        widest = xp.max(abs(rows), axis=-1, keepdims=True) / self.levels[-1]
        if self.options.scale == "absmax" or self.options.bits == 8:
            return widest
        unit = rows / xp.clip(widest, TINY)  # so that no square overflows or vanishes
        best, least = xp.ones_like(widest), xp.full_like(widest, xp.inf)
        for clip in clips(self.options.bits, self.levels):
            rounded = xp.clip(xp.round(unit / clip), self.levels[0], self.levels[-1])
            off = rounded * clip - unit
            error = xp.sum(off * off, axis=-1, keepdims=True)
            best = xp.where(error < least, xp.full_like(best, clip), best)
            least = xp.minimum(error, least)
        return widest * best

    def _scale_and_offset(self, rows: Array) -> tuple[Array, Array]:
        """Those of each row of float32 [N, K], as [N, 1] each."""
        xp = array_namespace(rows)
        if 0 in rows.shape:
            nothing = xp.sum(rows, axis=-1, keepdims=True)
            return nothing, nothing
        low, high = self.levels[0], self.levels[-1]
        least, most = xp.min(rows, axis=-1, keepdims=True), xp.max(rows, axis=-1, keepdims=True)
        width = most - least
        unit = (rows - least) / xp.clip(width, TINY)  # 0 to 1
        best = xp.full_like(width, 1 / (high - low)), xp.full_like(width, -low / (high - low))
        if self.options.scale == "mse" and self.options.bits != 8:
            smallest = xp.full_like(width, xp.inf)
            for share in narrowed(self.options.bits):
                step = share / (high - low)
                codes = xp.clip(xp.round((unit - 0.5) / step + (low + high) / 2), low, high)
                found = _line(codes, unit)
                error = xp.sum((codes * found[0] + found[1] - unit) ** 2, axis=-1, keepdims=True)
                better = error < smallest
                best = xp.where(better, found[0], best[0]), xp.where(better, found[1], best[1])
                smallest = xp.minimum(error, smallest)
        return width * best[0], least + width * best[1]


def narrowed(bits: int) -> list[float]:
    """The ranges that are tried, as shares of the weights' own."""
    least = NARROWEST[bits]
    return [1 - (1 - least) * i / (TRIED - 1) for i in range(TRIED)]


def _line(codes: Array, values: Array) -> tuple[Array, Array]:
    """The a > 0 and b, [N, 1], of least squared a * codes + b - values in each row [N, K]."""
    xp = array_namespace(codes)
    middle, mean = xp.mean(codes, axis=-1, keepdims=True), xp.mean(values, axis=-1, keepdims=True)
    off = codes - middle
    spread = xp.sum(off * off, axis=-1, keepdims=True)
    slope = xp.sum(off * (values - mean), axis=-1, keepdims=True) / xp.clip(spread, TINY)
    slope = xp.where(slope > 0, slope, xp.full_like(slope, TINY))  # all codes are equal
    return slope, mean - slope * middle


def clips(bits: int, levels: tuple[int, ...]) -> list[float]:
    """The scales that are tried, in units of the one that maps the largest magnitude to the last level."""
    longer = levels[-1] / -levels[0]
    shares = [longer ** (i / TO_LONGER[bits]) for i in range(TRIED)]
    return [sign * share for share in shares for sign in (1, -1)]
