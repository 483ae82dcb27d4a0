"""What quantizers share: the rows that have one scale, the mean magnitude, rounding to a code book.

All of it, and every quantizer, computes with torch tensors and with NumPy arrays alike.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from hybridkit.quant.protocol import Granularity

TINY = 2.0**-126  # the least normal float32

Array = Any  # a torch tensor or a NumPy array


def as_float32(weight: Array) -> Array:
    """`weight` as float32, without a gradient."""
    if hasattr(weight, "detach"):
        return weight.detach().float()
    return weight.astype("float32", copy=False)


def scale_rows(weight: Array, granularity: Granularity) -> Array:
    """`weight` [N, K] as float32 rows that share a scale each: [N, K] by channel, [1, N*K] by tensor."""
    values = as_float32(weight)
    return values if granularity == "channel" else values.reshape(1, -1)


def per_channel(scale: Array, channels: int) -> Array:
    """One scale per channel, [N], from one per channel or from a single one."""
    xp = array_namespace(scale)
    return xp.asarray(xp.broadcast_to(scale.reshape(-1), (channels,)), copy=True)


def mean_magnitude(weight: Array, granularity: Granularity) -> Array:
    """mean|w| over each row, or over the whole tensor and repeated: float32 [N]; 0 for an empty row."""
    rows = scale_rows(weight, granularity)
    xp = array_namespace(rows)
    return per_channel(xp.sum(abs(rows), axis=1) / max(rows.shape[1], 1), weight.shape[0])


def round_to_codes(values: Array, scale: Array, low: int, high: int) -> Array:
    """clip(round_half_even(values / scale), low, high) as int8; a zero scale gives zeros for zeros."""
    xp = array_namespace(values)
    return xp.astype(xp.clip(xp.round(values / divisor(scale)), low, high), xp.int8)


def divisor(scale: Array) -> Array:
    """A scale of either sign as what can be divided by: its magnitude is at least `TINY`."""
    xp = array_namespace(scale)
    return xp.where(abs(scale) < TINY, xp.full_like(scale, TINY), scale)
