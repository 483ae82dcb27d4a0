"""Codecs: integer weight codes [N, K] <-> packed bytes [N, B].

All but one are positional number systems: a byte holds `per_byte` digits of base `base`, the first code in
the lowest digit, and a code's digit is its index in the codec's levels. Rows are padded to a whole byte
with digits 0, which readers ignore. The other one is that of 3:4-sparse codes (sparse.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError, UsageError
from hybridkit.options import nearest
from hybridkit.packing.blocks import AT_ONCE, check_codes, check_packed, row_blocks
from hybridkit.packing.sparse import SparseCodec


class Codec(Protocol):
    """How codes from `levels` (ascending) are stored."""

    @property
    def name(self) -> str:
        """What files call it."""

    @property
    def levels(self) -> tuple[int, ...]:
        """The codes that there are, ascending."""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per code, padding of the rows aside."""

    def row_bytes(self, K: int) -> int:
        """Bytes B of a packed row of K codes."""

    def pack(self, codes: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Codes int8 [N, K] -> packed uint8 [N, B]. Raises UsageError for codes that it does not store."""

    def unpack(self, packed: NDArray[np.uint8], K: int) -> NDArray[np.int8]:
        """Packed uint8 [N, B] -> codes int8 [N, K]. Raises FileError for a byte that no code gives."""

    def count_zeros(self, packed: NDArray[np.uint8], K: int) -> int:
        """How many of K codes in each row of a packed array are 0; raises FileError as `unpack` does."""


@dataclass(frozen=True)
class Digits:
    """How codes from `levels` (ascending) are stored: `per_byte` digits of base `base` in each byte."""

    name: str
    levels: tuple[int, ...]
    base: int
    per_byte: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per code, padding of the rows aside."""
        return 8 / self.per_byte

    def row_bytes(self, K: int) -> int:
        """Bytes B of a packed row of K codes."""
        return -(-K // self.per_byte)

    def pack(self, codes: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Codes int8 [N, K] -> packed uint8 [N, B]. Raises UsageError for a code that is not a level."""
        check_codes(self.name, codes)
        N, K = codes.shape
        packed = np.zeros((N, self.row_bytes(K)), np.uint8)
        for rows in row_blocks(N, K):
            block = np.ascontiguousarray(codes[rows]).view(np.uint8)
            if not self._is_level[block].all():
                wrong = block[~self._is_level[block]].view(np.int8)[0]
                raise UsageError(
                    f"{self.name} cannot store the code {wrong}; it has {_describe(self.levels)}"
                )
            digits = self._digit_of[block]
            for place in range(self.per_byte):
                column = digits[:, place :: self.per_byte]
                packed[rows, : column.shape[1]] += column * np.uint8(self.base**place)
        return packed

    def unpack(self, packed: NDArray[np.uint8], K: int) -> NDArray[np.int8]:
        """Packed uint8 [N, B] -> codes int8 [N, K]. Raises FileError for a byte that no code gives."""
        check_packed(self.name, packed, self.row_bytes(K), K)
        N = packed.shape[0]
        codes = np.empty((N, K), np.int8)
        for rows in row_blocks(N, K):
            block = packed[rows]
            self._refuse(np.bincount(block[~self._is_byte[block]], minlength=256))
            codes[rows] = self._decoded[block].reshape(len(block), -1)[:, :K]
        return codes

    def count_zeros(self, packed: NDArray[np.uint8], K: int) -> int:
        """How many of K codes in each row of a packed array are 0 (padding never decodes to 0).

        Raises FileError for a byte that no code gives, without unpacking.
        """
        flat = packed.reshape(-1)
        histogram = np.zeros(256, np.int64)
        for start in range(0, flat.size, AT_ONCE):
            histogram += np.bincount(flat[start : start + AT_ONCE], minlength=256)
        self._refuse((histogram > 0) & ~self._is_byte)
        return int(histogram @ self._zeros)

    def _refuse(self, seen: NDArray[Any]) -> None:  # [256], by invalid byte
        if seen.any():
            raise FileError(f"{self.name} codes hold the byte {seen.argmax():#04x}, which no code gives")

    @cached_property
    def _is_level(self) -> NDArray[np.bool_]:  # by code, seen as uint8
        table = np.zeros(256, np.bool_)
        table[np.array(self.levels, np.int8).view(np.uint8)] = True
        return table

    @cached_property
    def _digit_of(self) -> NDArray[np.uint8]:  # by code, seen as uint8
        table = np.zeros(256, np.uint8)
        table[np.array(self.levels, np.int8).view(np.uint8)] = np.arange(len(self.levels))
        return table

    @cached_property
    def _digits(self) -> NDArray[np.intp]:  # [256, per_byte]
        return np.arange(256)[:, None] // self.base ** np.arange(self.per_byte) % self.base

    @cached_property
    def _is_byte(self) -> NDArray[np.bool_]:
        in_range: NDArray[np.bool_] = np.arange(256) < self.base**self.per_byte
        in_range &= np.all(self._digits < len(self.levels), axis=1)
        return in_range

    @cached_property
    def _decoded(self) -> NDArray[np.int8]:  # [256, per_byte]
        return np.array(self.levels, np.int8)[np.minimum(self._digits, len(self.levels) - 1)]

    @cached_property
    def _zeros(self) -> NDArray[np.int64]:  # zeros in each byte
        zeros: NDArray[np.int64] = np.sum(self._decoded == 0, axis=1, dtype=np.int64)
        return zeros


def _describe(levels: Sequence[int]) -> str:
    return (
        f"levels {', '.join(map(str, levels))}" if len(levels) < 5 else f"levels {levels[0]} to {levels[-1]}"
    )


def _nbit(bits: int) -> Digits:
    levels = tuple(range(-(1 << bits - 1), 1 << bits - 1))
    return Digits(f"nbit{bits}", levels, base=1 << bits, per_byte=8 // bits)


_DIGITS = {
    c.name: c
    for c in (
        Digits("two-bit", (-1, 0, 1), base=4, per_byte=4),
        Digits("base3", (-1, 0, 1), base=3, per_byte=5),
        Digits("one-bit", (-1, 1), base=2, per_byte=8),
        Digits("base6", (-3, -2, -1, 0, 1, 2), base=6, per_byte=3),
        _nbit(2),
        _nbit(4),
        _nbit(8),
    )
}
SPARSE: Final = SparseCodec()
_CODECS: Final[dict[str, Codec]] = {**_DIGITS, SPARSE.name: SPARSE}
CODECS: tuple[str, ...] = tuple(_CODECS)
_OPERATORS: Final = {"base3": "two-bit", "sparse34": "two-bit", "base6": "nbit4"}


def codec(name: str) -> Codec:
    """The codec called `name`. Raises UsageError if there is none."""
    if name not in _CODECS:
        raise UsageError(f"no codec is called {name!r}; {nearest(name, CODECS)}")
    return _CODECS[name]


def operator_codec(name: str) -> str:
    """The codec in which operators read what is stored in the codec `name`: each code has its own bits."""
    return _OPERATORS.get(name, name)


def codec_for(levels: Sequence[int]) -> Codec:
    """The default codec for a code book: the smallest that holds any codes of it, `two-bit` for ternary.

    Raises UsageError if a level lies outside int8 or the code book is empty.
    """
    wanted = set(levels)
    fitting = [c for c in _DIGITS.values() if wanted and wanted <= set(c.levels) and c.name != "base3"]
    if not fitting:
        raise UsageError(f"no codec holds the levels {list(levels)}; they must be integers from -128 to 127")
    return min(fitting, key=lambda c: (c.base, len(c.levels)))


def holds_levels(codec: Codec, levels: Sequence[int]) -> bool:
    """Whether it stores any codes from these levels, in any order."""
    return codec is not SPARSE and set(levels) <= set(codec.levels)


def bits_of(levels: Sequence[int]) -> float:
    """Information content of a code from this code book, log2(len(levels))."""
    return math.log2(len(levels))
