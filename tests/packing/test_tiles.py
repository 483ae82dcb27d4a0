"""Tiles hold what the formula of their layout says, and tiling loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hybridkit.packing import tiles
from hybridkit.packing.codecs import codec
from hybridkit.packing.tiles import tile, tiled_shape, untile

CODECS = {1: "one-bit", 2: "two-bit"}
few = settings(max_examples=25, deadline=None)
shapes = st.fixed_dictionaries(
    {
        "bits": st.sampled_from([1, 2]),
        "rows": st.integers(1, 40),
        "channels": st.integers(1, 60),
        "group": st.integers(1, 3),
        "positions": st.sampled_from([1, 1, 3, 4, 9]),
        "seed": st.integers(0, 2**31),
    }
)


def digits_of(codes, bits):
    """digits[n, k] of row-major codes."""
    per_byte = 8 // bits
    return [
        [int(row[k // per_byte]) >> bits * (k % per_byte) & 2**bits - 1 for k in range(len(row) * per_byte)]
        for row in codes
    ]


def tile_by_formula(codes, K, bits, group, positions):
    """The layout's definition, one digit after the other."""
    per_byte, N, channels = 8 // bits, len(codes), K // positions
    digits, rows = digits_of(codes, bits), N // group
    tiles_per_group = -(-rows // 16)
    out = np.zeros((group * tiles_per_group, -(-K // (4 * per_byte)), 16, 4), np.uint8)
    for t, b, r, j in np.ndindex(*out.shape):
        for p in range(per_byte):
            row, column = 16 * (t % tiles_per_group) + r, 4 * per_byte * b + 4 * p + j
            if row < rows and column < K:
                tap, channel = divmod(column, channels)
                digit = digits[t // tiles_per_group * rows + row][channel * positions + tap]
                out[t, b, r, j] |= digit << bits * p
    return out


def random_codes(bits, N, K, seed):
    made = codec(CODECS[bits])
    levels = np.array(made.levels, np.int8)
    return made.pack(np.random.default_rng(seed).choice(levels, (N, K)))


@few
@example({"bits": 2, "rows": 1, "channels": 1, "group": 1, "positions": 1, "seed": 0})
@example({"bits": 1, "rows": 33, "channels": 65, "group": 1, "positions": 1, "seed": 1})
@given(shapes)
def test_tiles_follow_the_formula_and_come_back(shape):
    bits, group, positions = shape["bits"], shape["group"], shape["positions"]
    N, K = shape["rows"] * group, shape["channels"] * positions
    codes = random_codes(bits, N, K, shape["seed"])
    tiled = tile(codes, K, bits, group=group, positions=positions)
    assert tiled.shape == tiled_shape(N, K, bits, group)
    np.testing.assert_array_equal(tiled, tile_by_formula(codes, K, bits, group, positions))
    np.testing.assert_array_equal(untile(tiled, N, K, bits, group=group, positions=positions), codes)


@pytest.mark.parametrize("block", [1, 500, 5000])
def test_blocks_of_rows_make_no_difference(monkeypatch, block):
    codes = random_codes(2, 90, 70, 3)
    whole = tile(codes, 70, 2, group=2, positions=7)
    monkeypatch.setattr(tiles, "_BLOCK", block)
    np.testing.assert_array_equal(tile(codes, 70, 2, group=2, positions=7), whole)
    np.testing.assert_array_equal(untile(whole, 90, 70, 2, group=2, positions=7), codes)


def test_a_worked_example():
    """Row 0 holds 1, -1, 0, 1, 1 in columns 0 to 4: byte j has columns j, 4 + j, 8 + j and 12 + j."""
    codes = codec("two-bit").pack(np.array([[1, -1, 0, 1, 1]], np.int8))
    tiled = tile(codes, 5, 2)
    assert tiled.shape == (1, 1, 16, 4)
    assert tiled[0, 0, 0].tolist() == [2 + (2 << 2), 0, 1, 2]
    assert not tiled[0, 0, 1:].any()
