"""The codec of 3:4-sparse ternary codes: of every four, one is 0 and three are -1 or +1.

Four codes have 4 x 2^3 = 32 states, so that five bits hold them: 1.25 bits per weight (Sherry, arXiv
2601.07892). Field i of a row is its bits 5 i to 5 i + 4, lowest first: bits 0 to 2 are the signs of the codes
that are not 0, in their order, 1 for +1; bits 3 and 4 say which of the four is 0. A row fills whole bytes.

Where K is no multiple of four, columns of the last block are not there. One of those may be its 0: its codes
are then all -1 or +1. What else is not there is stored as -1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import UsageError
from hybridkit.packing.blocks import check_codes, check_packed, row_blocks

BLOCK: Final = 4  # codes
BITS: Final = 5  # of a block


@dataclass(frozen=True)
class SparseCodec:
    """The only one of its kind."""

    name: str = "sparse34"
    levels: tuple[int, ...] = (-1, 0, 1)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per code, padding of the rows aside."""
        return BITS / BLOCK

    def row_bytes(self, K: int) -> int:
        """Bytes B of a packed row of K codes."""
        return math.ceil(BITS * math.ceil(K / BLOCK) / 8)

    def holds(self, codes: NDArray[np.int8]) -> bool:
        """Whether codes int8 [N, K] are ternary and one of every four is 0."""
        K = codes.shape[1]
        if codes.size and (codes.min() < -1 or codes.max() > 1):
            return False
        whole = K - K % BLOCK
        full = (codes[:, :whole] == 0).reshape(len(codes), whole // BLOCK, BLOCK).sum(axis=2)
        return bool((full == 1).all() and ((codes[:, whole:] == 0).sum(axis=1) <= 1).all())

    def pack(self, codes: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Codes int8 [N, K] -> packed uint8 [N, B]. Raises UsageError for codes that are not 3:4-sparse."""
        check_codes(self.name, codes)
        N, K = codes.shape
        packed = np.empty((N, self.row_bytes(K)), np.uint8)
        for rows in row_blocks(N, K):
            some = codes[rows]
            if not self.holds(some):
                raise UsageError(
                    f"{self.name} stores codes -1, 0, 1 of which one in every four is 0, and these are others"
                )
            blocks = _in_blocks(some)
            fields = _FIELD_OF[((blocks + 1) @ _POWERS).astype(np.intp)]
            bits = fields[:, :, None] >> np.arange(BITS, dtype=np.uint8) & 1
            packed[rows] = np.packbits(
                bits.reshape(len(some), BITS * blocks.shape[1]), axis=1, bitorder="little"
            )
        return packed

    def unpack(self, packed: NDArray[np.uint8], K: int) -> NDArray[np.int8]:
        """Packed uint8 [N, B] -> codes int8 [N, K]; every byte is right."""
        check_packed(self.name, packed, self.row_bytes(K), K)
        N, blocks = len(packed), math.ceil(K / BLOCK)
        codes = np.empty((N, K), np.int8)
        for rows in row_blocks(N, K):
            bits = np.unpackbits(packed[rows], axis=1, count=BITS * blocks, bitorder="little")
            fields = np.packbits(bits.reshape(-1, BITS), axis=1, bitorder="little")[:, 0]
            codes[rows] = DECODED[fields].reshape(len(bits), BLOCK * blocks)[:, :K]
        return codes

    def count_zeros(self, packed: NDArray[np.uint8], K: int) -> int:
        """How many of K codes in each row of a packed array are 0."""
        whole = K // BLOCK
        if whole * BLOCK == K:
            return len(packed) * whole
        bits = np.unpackbits(packed, axis=1, count=BITS * (whole + 1), bitorder="little")[:, BITS * whole :]
        places = bits[:, 3] + 2 * bits[:, 4]
        return len(packed) * whole + int((places < K % BLOCK).sum())


def _in_blocks(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Codes [N, K] as [N, blocks, 4], filled with a 0 where the last block has none, and then with -1."""
    N, K = codes.shape
    blocks = np.full((N, math.ceil(K / BLOCK), BLOCK), -1, np.int8)
    blocks.reshape(N, blocks.shape[1] * BLOCK)[:, :K] = codes
    if K % BLOCK:
        last = blocks[:, -1]
        last[(last != 0).all(axis=1), K % BLOCK] = 0
    return blocks


def _decoded() -> NDArray[np.int8]:
    """The four codes of each field, [32, 4]."""
    table = np.zeros((1 << BITS, BLOCK), np.int8)
    for field in range(1 << BITS):
        others = [place for place in range(BLOCK) if place != field >> 3]
        for sign, place in enumerate(others):
            table[field, place] = 1 if field >> sign & 1 else -1
    return table


DECODED: Final = _decoded()
_POWERS: Final = 3 ** np.arange(BLOCK)
_FIELD_OF: Final = np.zeros(3**BLOCK, np.uint8)  # by the digits of four codes in base 3
_FIELD_OF[(DECODED + 1) @ _POWERS] = np.arange(1 << BITS)
