"""Whole-file zstd compression with bounded decompression."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, BinaryIO

from hybridkit.errors import FileError, UsageError

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 9
_LARGEST_WINDOW = 1 << 27  # bytes of history that a frame may ask a reader to keep
_BLOCK = 1 << 20


def decompressed_limit(compressed_bytes: int) -> int:
    """The most bytes a compressed file may unfold to: packed codes shrink little, so a bomb stands out."""
    return 256 * compressed_bytes + (64 << 20)


def compress(chunks: Iterable[bytes], size: int, target: BinaryIO) -> None:
    """Compress `size` bytes, which come in chunks, into `target`.

    Raises UsageError if they shrink so far that `decompressed_limit` would refuse the result.
    """
    compressor = _zstandard().ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj(size=size)
    for chunk in chunks:
        target.write(compressor.compress(chunk))
    target.write(compressor.flush())
    if size > decompressed_limit(target.tell()):
        raise UsageError("nearly every byte of the model is the same; save it without compression")


def decompressing(source: BinaryIO) -> BinaryIO:
    """A readable stream of the decompressed content; its reads raise FileError for corrupted input."""
    return io.BufferedReader(_Stream(source), _BLOCK)


class _Stream(io.RawIOBase):
    def __init__(self, source: BinaryIO) -> None:
        self._zstandard = _zstandard()
        decompressor = self._zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._reader = decompressor.stream_reader(source, read_across_frames=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._reader.readinto(buffer))
        except self._zstandard.ZstdError:
            raise FileError("its zstd compression is corrupted or asks for too much memory") from None


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise UsageError(
            "zstd compression needs the package zstandard: pip install 'hybridkit[zstd]'"
        ) from None
    return zstandard
