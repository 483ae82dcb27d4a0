"""What a layer may get, and the bytes of that in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from hybridkit.packing.codecs import codec, codec_for, holds_levels
from hybridkit.quant.plan import make_quantizer
from hybridkit.quant.protocol import Quantizer

SCALE: Final = {True: 2, False: 4}  # bytes of a scale, in fp16 or fp32


@dataclass(frozen=True)
class Option:
    """A quantizer by its name and options, as a QuantConfig takes it."""

    label: str
    spec: Mapping[str, Any]

    @cached_property
    def quantizer(self) -> Quantizer:
        """The quantizer itself."""
        made, _ = make_quantizer(self.spec)
        assert made is not None
        return made

    @property
    def group_size(self) -> int:
        """Columns that share a scale; 0: all of a row."""
        granularity = str(self.spec.get("granularity", ""))
        return int(granularity.removeprefix("group:")) if granularity.startswith("group:") else 0

    def bytes(self, shape: Sequence[int], wanted: str | None, half: bool) -> int:
        """Of a weight [N, K]: codes as they are packed, `wanted` where it holds them, and scales."""
        N, K = shape
        levels = self.quantizer.levels
        used = codec_for(levels)
        if wanted and holds_levels(codec(wanted), levels):
            used = min(used, codec(wanted), key=lambda each: each.bits_per_weight)
        groups = -(-K // self.group_size) if self.group_size else 1
        numbers = 2 if self.spec.get("offset") else 1
        return N * used.row_bytes(K) + SCALE[half] * numbers * N * groups


def _nbit(bits: int, size: int = 0, *, offset: bool = False) -> Option:
    spec: dict[str, Any] = {"quantizer": "nbit", "bits": bits}
    if not offset:
        return _grouped(f"{bits} bits", spec, size)
    return _grouped(f"{bits} bits offset", {**spec, "offset": True}, size)


def _grouped(label: str, spec: Mapping[str, Any], size: int) -> Option:
    if not size:
        return Option(label, dict(spec))
    return Option(f"{label} g{size}", {**spec, "granularity": f"group:{size}"})


_TERNARY: Final = {"quantizer": "ternary-mse"}

OPTIONS: Final = (  # many bits first
    *(_nbit(8), _nbit(8, 32)),
    *(_nbit(4, size) for size in (32, 64, 128, 0)),
    _nbit(4, 32, offset=True),  # behind: the first of 4 bits is tried, and is not to be free of error
    *(_nbit(bits, size) for bits in (3, 2) for size in (32, 64, 128)),
    _nbit(2, 64, offset=True),
    *(_grouped("ternary", _TERNARY, size) for size in (64, 128, 0)),
    _grouped("binary", {"quantizer": "binary"}, 64),
)
