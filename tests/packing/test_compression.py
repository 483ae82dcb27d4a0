"""zstd: smaller files, a clear message without the package, and no bombs."""

import struct
import sys

import numpy as np
import pytest
import zstandard

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.codecs import codec
from hybridkit.packing.compression import decompressed_limit
from hybridkit.packing.container import TensorSpec
from hybridkit.packing.model import PackedModel
from hybridkit.packing.table import Table
from hybridkit.packing.writer import BLOCK, _header


def test_two_bit_codes_shrink(make_layer, tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.choice(np.array([-1, 0, 1], np.int8), (256, 2048), p=[0.15, 0.7, 0.15])
    layer = make_layer("fc", (256, 2048), codes=codec("two-bit").pack(codes))
    model = PackedModel({"fc": layer})
    sizes = model.save(tmp_path / "small", "zstd")
    assert sizes.file_bytes == (tmp_path / "small").stat().st_size < 0.85 * model.sizes().file_bytes
    assert sizes.ratio > model.sizes().ratio
    assert np.array_equal(PackedModel.load(tmp_path / "small").layers["fc"].unpack(), codes)


def test_without_the_package(example_model, tmp_path, monkeypatch):
    example_model.save(tmp_path / "model", "zstd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UsageError, match=r"pip install 'hybridkit\[zstd\]'"):
        example_model.save(tmp_path / "other", "zstd")
    with pytest.raises(FileError, match=r"pip install 'hybridkit\[zstd\]'"):
        PackedModel.load(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def bomb(path, header, size):
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    with path.open("wb") as file:
        file.write(compressor.compress(struct.pack("<Q", len(header)) + header))
        for _ in range(size >> 20):
            file.write(compressor.compress(bytes(1 << 20)))
        file.write(compressor.flush())


def test_a_bomb_is_refused_before_it_unfolds(peak_memory, tmp_path):
    size = 512 << 20
    header = _header(Table([], {"a": TensorSpec("U8", (size,))}), bytes(32 * (size // BLOCK)))
    bomb(tmp_path / "bomb", header[8:], size)
    assert decompressed_limit((tmp_path / "bomb").stat().st_size) < size
    with peak_memory() as peak, pytest.raises(FileError, match="announces more content than it can hold"):
        PackedModel.load(tmp_path / "bomb")
    assert peak() < 16 << 20


def test_a_frame_that_asks_for_a_huge_window_is_refused(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=0)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = np.random.default_rng(0).bytes(1 << 10)
    (tmp_path / "model").write_bytes(compressor.compress(content) + compressor.flush())
    with pytest.raises(FileError, match="zstd compression is corrupted or asks for too much memory"):
        PackedModel.load(tmp_path / "model")


def test_a_model_that_no_reader_would_take_is_not_written(tmp_path):
    model = PackedModel({}, {"w": np.zeros(24 << 20, np.float32)})
    with pytest.raises(UsageError, match="save it without compression"):
        model.save(tmp_path / "model", "zstd")
    assert not list(tmp_path.iterdir())
