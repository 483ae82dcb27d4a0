"""Codecs against an obvious pure-Python twin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.codecs import CODECS, codec, codec_for

SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 31, 61, 127])


def reference_pack(name, rows):
    """One row, one code, one shift at a time."""
    packed = []
    for row in rows:
        out = []
        if name == "base3":
            groups = [row[start : start + 5] for start in range(0, len(row), 5)]
            out = [sum((q + 1) * 3**i for i, q in enumerate(group)) for group in groups]
        elif name == "sparse34":
            out = sparse_reference(row)
        elif name == "base6":
            groups = [row[start : start + 3] for start in range(0, len(row), 3)]
            out = [sum((q + 3) * 6**i for i, q in enumerate(group)) for group in groups]
        else:
            bits, offset = {
                "two-bit": (2, 1),
                "one-bit": (1, 0),
                "nbit2": (2, 2),
                "nbit4": (4, 8),
                "nbit8": (8, 128),
            }[name]
            value = 0
            for i, q in enumerate(row):
                field = int(q == 1) if name == "one-bit" else q + offset
                value |= field << (bits * i)
            out = list(value.to_bytes((len(row) * bits + 7) // 8, "little"))
        packed.append(out)
    return packed


def sparse_reference(row):
    """A block of four, a bit at a time."""
    value = 0
    for block, start in enumerate(range(0, len(row), 4)):
        four = row[start : start + 4]
        zero = four.index(0) if 0 in four else len(four)
        signs = [int(q == 1) for place, q in enumerate(four) if place != zero]
        value |= (sum(bit << i for i, bit in enumerate(signs)) | zero << 3) << 5 * block
    return list(value.to_bytes((-(-len(row) // 4) * 5 + 7) // 8, "little"))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CODECS), SIZES, SIZES, st.integers(0, 2**32 - 1))
def test_pack_equals_the_reference_and_unpacks_exactly(make_codes, name, N, K, seed):
    codes = make_codes(name, N, K, seed)
    packed = codec(name).pack(codes)
    assert packed.shape == (N, codec(name).row_bytes(K))
    assert packed.dtype == np.uint8
    assert packed.tolist() == reference_pack(name, codes.tolist())
    unpacked = codec(name).unpack(packed, K)
    assert unpacked.dtype == np.int8
    assert np.array_equal(unpacked, codes)
    assert codec(name).count_zeros(packed, K) == int((codes == 0).sum())


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    ("N", "K"), [(3, 4099), (2053, 997), (1, 1_500_001), (1_100_000, 2), (4096, 0), (0, 4096)]
)
def test_round_trip_across_row_blocks(make_codes, name, N, K):
    codes = make_codes(name, N, K, seed=N + K)
    packed = codec(name).pack(codes)
    assert np.array_equal(codec(name).unpack(packed, K), codes)
    assert codec(name).count_zeros(packed, K) == int((codes == 0).sum())


@pytest.mark.parametrize("name", CODECS)
def test_round_trip_of_a_transposed_view(make_codes, name):
    codes = np.asfortranarray(make_codes(name, 29, 17, seed=0))
    assert np.array_equal(codec(name).unpack(codec(name).pack(codes), 17), codes)


def test_known_bytes():
    q = np.array([[-1, 0, 1, 1, 0, -1]], np.int8)
    assert codec("two-bit").pack(q).tolist() == [[0b10_10_01_00, 0b00_00_00_01]]
    assert codec("base3").pack(q).tolist() == [[0 + 1 * 3 + 2 * 9 + 2 * 27 + 1 * 81, 0]]
    assert codec("one-bit").pack(np.array([[1, -1, -1, 1]], np.int8)).tolist() == [[0b1001]]
    assert codec("nbit4").pack(np.array([[-8, 7, 0]], np.int8)).tolist() == [[0xF0, 0x08]]
    blocks = np.array([[1, 0, -1, 1, 0, 1, 1, 1, -1, -1]], np.int8)
    assert codec("sparse34").pack(blocks).tolist() == [[0b111_01101, 0b0_10000_00]]


@pytest.mark.parametrize(
    ("name", "bits"), [("two-bit", 2), ("base3", 1.6), ("one-bit", 1), ("nbit4", 4), ("sparse34", 1.25)]
)
def test_bits_per_weight(name, bits):
    assert codec(name).bits_per_weight == bits


@given(st.sampled_from([n for n in CODECS if n not in ("nbit8", "sparse34")]), st.integers(-128, 127))
@settings(max_examples=60, deadline=None)
def test_codes_outside_the_levels_are_refused(name, value):
    codes = np.full((2, 3), codec(name).levels[0], np.int8)
    codes[1, 1] = value
    if value in codec(name).levels:
        codec(name).pack(codes)
    else:
        with pytest.raises(UsageError, match=f"{name} cannot store the code {value};"):
            codec(name).pack(codes)


@pytest.mark.parametrize("name", [n for n in CODECS if n != "sparse34"])
def test_every_byte_either_decodes_and_packs_back_or_is_refused(name):
    valid = 0
    for byte in range(256):
        packed = np.array([[byte]], np.uint8)
        try:
            codes = codec(name).unpack(packed, codec(name).per_byte)
        except FileError:
            with pytest.raises(FileError, match=f"hold the byte {byte:#04x}, which"):
                codec(name).count_zeros(packed, codec(name).per_byte)
            continue
        assert codec(name).pack(codes)[0, 0] == byte
        valid += 1
    assert valid == len(codec(name).levels) ** codec(name).per_byte


def test_every_field_of_a_sparse_row_is_four_codes():
    sparse = codec("sparse34")
    packed = np.random.default_rng(0).integers(0, 256, (64, 5), dtype=np.uint8)
    codes = sparse.unpack(packed, 32)
    assert ((codes.reshape(-1, 4) == 0).sum(axis=1) == 1).all()
    assert np.array_equal(sparse.pack(codes), packed)
    assert len({tuple(four) for four in codes.reshape(-1, 4).tolist()}) == 32


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_sparse_codes_are_those_with_one_zero_in_four(K, seed):
    codes = np.random.default_rng(seed).choice(np.array([-1, 0, 1, 1, -1, 1, -1], np.int8), (2, K))
    fours = [row[start : start + 4].tolist() for row in codes for start in range(0, K, 4)]
    right = all(four.count(0) == 1 or (len(four) < 4 and not four.count(0)) for four in fours)
    assert codec("sparse34").holds(codes) == right
    if not right:
        with pytest.raises(UsageError, match="one in every four is 0"):
            codec("sparse34").pack(codes)


def test_sparse_codes_have_three_levels():
    with pytest.raises(UsageError, match="one in every four is 0"):
        codec("sparse34").pack(np.array([[0, 2, 1, 1]], np.int8))


def test_wrong_arrays_are_refused():
    with pytest.raises(UsageError, match="int8 codes"):
        codec("two-bit").pack(np.zeros((2, 2), np.int64))
    with pytest.raises(UsageError, match="int8 codes"):
        codec("two-bit").pack(np.zeros(2, np.int8))
    with pytest.raises(FileError, match=r"uint8 \[N, 2\]"):
        codec("two-bit").unpack(np.zeros((2, 1), np.uint8), 5)


@pytest.mark.parametrize(
    ("levels", "name"),
    [
        ((-1, 0, 1), "two-bit"),
        ((-1, 1), "one-bit"),
        ((-2, -1, 0, 1), "nbit2"),
        ((-2, -1, 1, 2), "base6"),
        (range(-3, 3), "base6"),
        (range(-7, 8), "nbit4"),
        (range(-127, 128), "nbit8"),
    ],
)
def test_codec_for_a_code_book(levels, name):
    assert codec_for(tuple(levels)).name == name


def test_unknown_codec_and_levels():
    with pytest.raises(UsageError, match="did you mean 'two-bit'"):
        codec("twobit")
    with pytest.raises(UsageError, match="no codec holds"):
        codec_for((-200, 0))
    with pytest.raises(UsageError, match="no codec holds"):
        codec_for(())
