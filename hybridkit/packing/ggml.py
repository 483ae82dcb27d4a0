"""Codes and scales as blocks of ggml's types, exactly: what is written is what the layer computes with.

A row of K weights is K / size blocks, each with an fp16 scale of its own; a scale of ours that reaches
further is repeated. The layouts are those of ggml (ggml-common.h, ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = Literal["F16", "F32", "BF16"]  # types of what is not quantised
Codes = NDArray[np.int8]  # [blocks, size]
Bytes = NDArray[np.uint8]  # [blocks, bytes of a block]


@dataclass(frozen=True, slots=True)
class BlockType:
    """A type of ggml: `number` in the file, weights of a block, its bytes, and the codes that it holds.

    encode: codes int8 [B, size] and scales fp16 [B] to bytes [B, bytes]; decode is its inverse. Types that
    have an offset take and give it behind the scales, fp16 [B]: the weight of the lowest code.
    """

    name: str
    number: int
    size: int
    bytes: int
    low: int
    high: int
    encode: Callable[..., Bytes]
    decode: Callable[[Bytes], tuple[Any, ...]]
    zero: bool = True  # among the codes
    has_offset: bool = False

    @property
    def bits(self) -> float:
        """Per weight, the scale included."""
        return 8 * self.bytes / self.size

    def holds(self, levels: tuple[int, ...]) -> bool:
        """Whether all of these codes fit."""
        return self.low <= levels[0] and levels[-1] <= self.high and (self.zero or 0 not in levels)


def to_blocks(
    kind: BlockType,
    codes: Codes,
    scale: NDArray[np.float32],
    group_size: int,
    offset: NDArray[np.float32] | None = None,
) -> Bytes:
    """Codes [N, K] with scales [N], or [N, ceil(K / group_size)], as uint8 [N, bytes of a row].

    K, and `group_size` where there is one, are multiples of the type's size. `offset` as scale, for a type
    that has one. Both are rounded to fp16.
    """
    N, K = codes.shape
    assert group_size % kind.size == 0
    assert kind.has_offset == (offset is not None)
    reach = (group_size or K) // kind.size  # blocks of a scale; the last one may have fewer

    def by_block(numbers: NDArray[np.float32]) -> NDArray[np.float16]:
        each = np.repeat(numbers.reshape(N, -1), reach, axis=1)[:, : K // kind.size]
        return each.astype(np.float16).ravel()

    numbers = [by_block(scale)]
    if offset is not None:
        numbers.append(by_block(offset + kind.low * scale))
    blocks = kind.encode(codes.reshape(-1, kind.size), *numbers)
    return blocks.reshape(N, K // kind.size * kind.bytes)


def from_blocks(kind: BlockType, rows: Bytes) -> NDArray[np.float32]:
    """The weights that rows of blocks stand for, float32 [N, K]."""
    codes, *numbers = kind.decode(rows.reshape(-1, kind.bytes))
    scale, *least = (each.astype(np.float32)[:, None] for each in numbers)
    if least:
        codes = (codes - np.int8(kind.low)).view(np.uint8)
    weight: NDArray[np.float32] = codes.astype(np.float32) * scale
    if least:
        weight += least[0]
    return weight.reshape(len(rows), -1)


def _scaled_first(scale: NDArray[np.float16], rest: NDArray[Any]) -> Bytes:
    return np.concatenate([_bytes(scale), rest.astype(np.uint8)], axis=1)


def _bytes(scale: NDArray[np.float16]) -> Bytes:
    return scale.astype("<f2")[:, None].view(np.uint8)


def _scale(bytes_: Bytes) -> NDArray[np.float16]:
    found: NDArray[np.float16] = np.ascontiguousarray(bytes_).view("<f2")[:, 0].astype(np.float16)
    return found


def _encode_q1_0(codes: Codes, scale: NDArray[np.float16]) -> Bytes:
    return _scaled_first(scale, np.packbits(codes > 0, axis=1, bitorder="little"))


def _decode_q1_0(blocks: Bytes) -> tuple[Codes, NDArray[np.float16]]:
    signs = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.int8)
    return 2 * signs - 1, _scale(blocks[:, :2])


def _encode_q2_0(codes: Codes, scale: NDArray[np.float16]) -> Bytes:
    digits = (codes + 1).astype(np.uint8).reshape(len(codes), -1, 4)
    return _scaled_first(scale, np.bitwise_or.reduce(digits << np.arange(0, 8, 2, dtype=np.uint8), axis=2))


def _decode_q2_0(blocks: Bytes) -> tuple[Codes, NDArray[np.float16]]:
    digits = blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    return digits.reshape(len(blocks), -1).astype(np.int8) - 1, _scale(blocks[:, :2])


def _encode_tq2_0(codes: Codes, scale: NDArray[np.float16]) -> Bytes:
    digits = (codes + 1).astype(np.uint8).reshape(len(codes), 2, 4, 32)  # element m + 32 n at bits 2 n
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    packed = np.bitwise_or.reduce(digits << shifts, axis=2).reshape(len(codes), 64)
    return np.concatenate([packed, _bytes(scale)], axis=1)


def _decode_tq2_0(blocks: Bytes) -> tuple[Codes, NDArray[np.float16]]:
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    digits = blocks[:, :64].reshape(-1, 2, 1, 32) >> shifts & 3
    return digits.reshape(len(blocks), 256).astype(np.int8) - 1, _scale(blocks[:, 64:])


_POWERS: Final = 3 ** np.arange(4, -1, -1)


def _encode_tq1_0(codes: Codes, scale: NDArray[np.float16]) -> Bytes:
    """Five trits a byte, as ceil(n * 256 / 243), so that multiplying by 3 brings out the next one."""
    trits = (codes + 1).astype(np.int64)
    parts = [
        trits[:, :160].reshape(-1, 5, 32),
        trits[:, 160:240].reshape(-1, 5, 16),
        np.pad(trits[:, 240:].reshape(-1, 4, 4), ((0, 0), (0, 1), (0, 0))),
    ]
    numbers = np.concatenate([(part * _POWERS[:, None]).sum(axis=1) for part in parts], axis=1)
    return np.concatenate([(-(-numbers * 256 // 243)).astype(np.uint8), _bytes(scale)], axis=1)


def _decode_tq1_0(blocks: Bytes) -> tuple[Codes, NDArray[np.float16]]:
    powers = (3 ** np.arange(5)).astype(np.uint8)[:, None]
    parts = []
    for first, count, trits in ((0, 32, 5), (32, 16, 5), (48, 4, 4)):
        shifted = blocks[:, None, first : first + count] * powers[:trits]  # modulo 256
        parts.append((shifted.astype(np.uint16) * 3 >> 8).reshape(len(blocks), -1))
    return np.concatenate(parts, axis=1).astype(np.int8) - 1, _scale(blocks[:, 52:])


def _encode_q4_0(codes: Codes, scale: NDArray[np.float16]) -> Bytes:
    digits = (codes + 8).astype(np.uint8)
    return _scaled_first(scale, digits[:, :16] | digits[:, 16:] << 4)


def _decode_q4_0(blocks: Bytes) -> tuple[Codes, NDArray[np.float16]]:
    digits = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return digits.astype(np.int8) - 8, _scale(blocks[:, :2])


def _encode_q4_1(codes: Codes, scale: NDArray[np.float16], least: NDArray[np.float16]) -> Bytes:
    as_q4_0 = _encode_q4_0(codes, scale)
    return np.concatenate([as_q4_0[:, :2], _bytes(least), as_q4_0[:, 2:]], axis=1)


def _decode_q4_1(blocks: Bytes) -> tuple[Codes, NDArray[np.float16], NDArray[np.float16]]:
    codes, scale = _decode_q4_0(np.delete(blocks, (2, 3), axis=1))
    return codes, scale, _scale(blocks[:, 2:4])


def _encode_q8_0(codes: Codes, scale: NDArray[np.float16]) -> Bytes:
    return _scaled_first(scale, codes.view(np.uint8))


def _decode_q8_0(blocks: Bytes) -> tuple[Codes, NDArray[np.float16]]:
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8), _scale(blocks[:, :2])


TYPES: Final = {
    kind.name: kind
    for kind in (
        BlockType("Q1_0", 41, 128, 18, -1, 1, _encode_q1_0, _decode_q1_0, zero=False),
        BlockType("TQ1_0", 34, 256, 54, -1, 1, _encode_tq1_0, _decode_tq1_0),
        BlockType("TQ2_0", 35, 256, 66, -1, 1, _encode_tq2_0, _decode_tq2_0),
        BlockType("Q2_0", 42, 64, 18, -1, 2, _encode_q2_0, _decode_q2_0),
        BlockType("Q4_0", 2, 32, 18, -8, 7, _encode_q4_0, _decode_q4_0),
        BlockType("Q4_1", 3, 32, 20, -8, 7, _encode_q4_1, _decode_q4_1, has_offset=True),
        BlockType("Q8_0", 8, 32, 34, -128, 127, _encode_q8_0, _decode_q8_0),
    )
}
