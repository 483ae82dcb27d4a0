"""Uniform quantisation to 2, 4 or 8 bits, symmetric about zero, per channel, tensor or group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge
from array_api_compat import array_namespace, device

from hybridkit.errors import UsageError
from hybridkit.options import option
from hybridkit.quant.protocol import Granularity, QuantizedTensor, straight_through
from hybridkit.quant.scales import TINY, Array, as_float32, per_channel, round_to_codes, scale_rows

if TYPE_CHECKING:
    from torch import Tensor

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

    takes_numpy: ClassVar = True

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
        group = self.options.group_size
        if group:
            groups = _in_groups(as_float32(weight), group)
        else:
            groups = scale_rows(weight, self.options.granularity)[:, None, :]
        scale = self._scale(groups)
        codes = round_to_codes(groups, scale, self.levels[0], self.levels[-1])
        if group:
            xp = array_namespace(codes)
            kept = codes.reshape(channels, groups.shape[1] * group)[:, :width]
            return QuantizedTensor(xp.asarray(kept, copy=True), scale[:, :, 0], group)
        return QuantizedTensor(codes.reshape(channels, width), per_channel(scale, channels))

    def _scale(self, groups: Array) -> Array:
        """The scale of each group of float32 [..., G], as [..., 1]."""
        xp = array_namespace(groups)
        if 0 in groups.shape:
            return xp.sum(groups, axis=-1, keepdims=True)
        widest = xp.max(abs(groups), axis=-1, keepdims=True) / self.levels[-1]
        if self.options.scale == "absmax" or self.options.bits == 8:
            return widest
        unit = groups / xp.clip(widest, TINY)  # so that no square overflows or vanishes
        best, least = xp.ones_like(widest), xp.full_like(widest, xp.inf)
        for clip in CLIPS:
            rounded = xp.clip(xp.round(unit / clip), self.levels[0], self.levels[-1])
            off = rounded * clip - unit
            error = xp.sum(off * off, axis=-1, keepdims=True)
            best = xp.where(error < least, xp.full_like(best, clip), best)
            least = xp.minimum(error, least)
        return widest * best

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor) -> Tensor:
        """The dequantised weight; identity as gradient."""
        return straight_through(weight, quantized)


def _in_groups(values: Array, size: int) -> Array:
    """[N, K] as [N, groups, size], with zeros behind the last weight."""
    xp = array_namespace(values)
    N, K = values.shape
    if K % size:
        rest = xp.zeros((N, -K % size), dtype=values.dtype, device=device(values))
        values = xp.concat([values, rest], axis=1)
    return values.reshape(N, -(-K // size), size)
