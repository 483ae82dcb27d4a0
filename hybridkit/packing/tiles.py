"""Tiled codes: the order in which the native kernels stream a packed matrix (layouts 1 and 2).

Row-major codes (layout 0) have P = 8 / bits digits in a byte, lowest bits first. Tiles are
[tiles, blocks, 16, 4]: digit p of byte [t, b, r, j] is row 16 t + r, column 4 P b + 4 p + j, and what lies
beyond the matrix is digit 0. There are blocks for K rounded up to a multiple of 16, of 32 for bits = 1.
A convolution orders the columns of a row as (kernel, channel) first, where layout 0 has ONNX's (channel,
kernel), and tiles the rows of each group on their own, group after group; that is layout 2. With one group
and a kernel of one position it is the same as layout 1.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

TILE_ROWS: Final = 16
TILE_COLUMNS: Final = 4  # neighbouring bytes of one row

_BLOCK: Final = 1 << 20  # digits handled at a time: bounds the temporary arrays


def tiled_shape(N: int, K: int, bits: int, group: int = 1) -> tuple[int, int, int, int]:
    """The shape of the tiles of a matrix [N, K] with `bits` 1, 2, 4 or 8."""
    tiles = group * -(-(N // group) // TILE_ROWS)
    block = TILE_COLUMNS * 8 // bits
    step = max(block, TILE_ROWS)
    return tiles, -(-K // step) * step // block, TILE_ROWS, TILE_COLUMNS


def tile(
    codes: NDArray[np.uint8], K: int, bits: int, *, group: int = 1, positions: int = 1
) -> NDArray[np.uint8]:
    """Row-major codes uint8 [N, ceil(K / P)] -> tiles.

    group divides N; `positions`, the number of them in a convolution's kernel, divides K.
    """
    N, digits_per_byte = len(codes), 8 // bits
    shifts = np.arange(digits_per_byte, dtype=np.uint8) * np.uint8(bits)
    shape = tiled_shape(N, K, bits, group)
    blocks, width = shape[1], shape[1] * digits_per_byte * TILE_COLUMNS
    tiles = np.zeros(shape, np.uint8)
    for target, source in _tiles_and_rows(N, width, group):
        digits = (codes[source, :, None] >> shifts & np.uint8(2**bits - 1)).reshape(
            -1, codes.shape[1] * len(shifts)
        )
        columns = digits[:, :K].reshape(len(digits), -1, positions).swapaxes(1, 2).reshape(len(digits), K)
        padded = np.zeros((tiles[target].shape[0] * TILE_ROWS, width), np.uint8)
        padded[: len(digits), :K] = columns
        parts = padded.reshape(-1, TILE_ROWS, blocks, digits_per_byte, TILE_COLUMNS).transpose(0, 2, 1, 4, 3)
        tiles[target] = np.bitwise_or.reduce(parts << shifts, axis=-1)
    return tiles


def untile(
    tiles: NDArray[np.uint8], N: int, K: int, bits: int, *, group: int = 1, positions: int = 1
) -> NDArray[np.uint8]:
    """The inverse of `tile`: row-major codes uint8 [N, ceil(K / P)]."""
    digits_per_byte = 8 // bits
    shifts = np.arange(digits_per_byte, dtype=np.uint8) * np.uint8(bits)
    row_bytes = -(-K // digits_per_byte)
    codes = np.zeros((N, row_bytes), np.uint8)
    for source, target in _tiles_and_rows(N, tiles.shape[1] * digits_per_byte * TILE_COLUMNS, group):
        parts = (tiles[source][..., None] >> shifts & np.uint8(2**bits - 1)).transpose(0, 2, 1, 4, 3)
        rows = len(codes[target])
        columns = parts.reshape(len(parts) * TILE_ROWS, -1)[:rows, :K]
        padded = np.zeros((rows, row_bytes * digits_per_byte), np.uint8)
        padded[:, :K] = columns.reshape(rows, positions, -1).swapaxes(1, 2).reshape(rows, K)
        codes[target] = np.bitwise_or.reduce(padded.reshape(rows, row_bytes, -1) << shifts, axis=-1)
    return codes


def _tiles_and_rows(N: int, width: int, group: int) -> list[tuple[slice, slice]]:
    """Ranges of tiles with the rows in them, each of one group and of at most _BLOCK digits (or one tile)."""
    rows = N // group
    tiles, step = -(-rows // TILE_ROWS), max(1, _BLOCK // (TILE_ROWS * max(width, 1)))
    ranges = []
    for g in range(group):
        for first in range(0, tiles, step):
            last = min(first + step, tiles)
            ranges.append(
                (
                    slice(g * tiles + first, g * tiles + last),
                    slice(g * rows + first * TILE_ROWS, g * rows + min(last * TILE_ROWS, rows)),
                )
            )
    return ranges
