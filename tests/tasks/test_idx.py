from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import FileError
from hybridkit.tasks.idx import read_idx


def idx_bytes(array):
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4), zipped=st.booleans(), seed=st.integers(0, 99)
)
def test_arrays_survive(tmp_path_factory, shape, zipped, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path = tmp_path_factory.mktemp("idx") / "array"
    path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    read = read_idx(path, len(shape))
    assert read.dtype == torch.uint8
    np.testing.assert_array_equal(read.numpy(), array)


WHOLE = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
DAMAGED = {
    "empty": (b"", "not an IDX file"),
    "foreign": (b"PK\x03\x04" + bytes(60), "not an IDX file"),
    "floats": (bytes([0, 0, 13, 1]) + bytes(8), "not an IDX file of bytes"),
    "another rank": (idx_bytes(np.zeros(5, np.uint8)), "1 dimensions; 3"),
    "cut in the header": (WHOLE[:9], "truncated"),
    "cut in the data": (WHOLE[:-1], "fewer bytes"),
    "too long": (WHOLE + b"\0", "more bytes"),
    "no elements": (idx_bytes(np.zeros((0, 3, 4), np.uint8)), "is empty"),
    "cut gzip": (gzip.compress(WHOLE)[:-12], "truncated or corrupted"),
    "bad gzip checksum": (gzip.compress(WHOLE)[:-8] + bytes(8), "cannot be read"),
    "absurd sizes": (bytes([0, 0, 8, 3]) + b"\x7f" * 12, "fewer bytes"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_get_one_clear_line(tmp_path, damage):
    content, message = DAMAGED[damage]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        read_idx(tmp_path / "absent", 1)
