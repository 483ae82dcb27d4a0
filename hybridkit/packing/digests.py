"""SHA-256 of blocks: whoever takes a few tensors out of a large file hashes those and not the whole file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError
from hybridkit.packing.container import Header

BLOCK: Final = 1 << 20  # bytes of the data section under one hash; the last block may be shorter
_BYTES: Final = 32
_PLACE: Final = b"0" * 40  # 32 bytes in base 85


def digests(chunks: Iterable[bytes | memoryview]) -> bytes:
    """The hash of each block of a stream, one after the other."""
    found, current, room = b"", hashlib.sha256(), BLOCK
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            current.update(rest[:room])
            taken = min(room, len(rest))
            rest, room = rest[taken:], room - taken
            if not room:
                found, current, room = found + current.digest(), hashlib.sha256(), BLOCK
    return found if room == BLOCK else found + current.digest()


def hash_field(blocks: bytes) -> str:
    """The value of the header's `sha256` before the header is signed."""
    return _PLACE.decode() + base64.b85encode(blocks).decode()


def block_hashes(value: str, data_bytes: int) -> bytes:
    """The blocks' hashes, out of the header's `sha256`. Raises FileError where their number is wrong."""
    try:
        found = base64.b85decode(value[len(_PLACE) :])
    except ValueError:
        found = b""
    if len(found) != -(-data_bytes // BLOCK) * _BYTES:
        raise FileError("its hashes do not fit its content")
    return found


def sign(header: bytes, value: str) -> bytes:
    """The header with its own SHA-256 at the beginning of its field `sha256`, which holds `value`.

    The hash is taken with 40 zeros in its place. Raises FileError where the field is not written as we do.
    """
    before, found, _ = header.rpartition(b'"sha256":"' + value.encode())
    start = len(before) + len(b'"sha256":"')
    if not found or len(value) < len(_PLACE):
        raise FileError("its header holds no SHA-256 of itself")
    blank = header[:start] + _PLACE + header[start + len(_PLACE) :]
    digest = base64.b85encode(hashlib.sha256(blank).digest())
    return header[:start] + digest + header[start + len(_PLACE) :]


def identity(header: Header) -> str:
    """The hash of the header, which stands for the whole file."""
    return header.field("sha256")[: len(_PLACE)]


class CheckedData:
    """A data section whose blocks are hashed before they are first handed out.

    data: uint8 [bytes], mapped or in memory.
    """

    def __init__(self, data: NDArray[np.uint8], hashes: bytes) -> None:
        self._data, self._hashes = data, hashes
        self._seen = np.zeros(-(-len(data) // BLOCK), np.bool_)

    def take(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Bytes of the tensor `name`. Raises FileError if a block that it lies in is not what was written."""
        for block in range(begin // BLOCK, -(-end // BLOCK) if end > begin else 0):
            if not self._seen[block]:
                content = self._data[block * BLOCK : (block + 1) * BLOCK]
                wanted = self._hashes[block * _BYTES : (block + 1) * _BYTES]
                if hashlib.sha256(content.data).digest() != wanted:
                    raise FileError(f"tensor {name!r} does not match its SHA-256; the file is corrupted")
                self._seen[block] = True
        return self._data[begin:end]
