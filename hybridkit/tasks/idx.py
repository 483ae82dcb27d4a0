"""IDX files, the format of MNIST and its successors, gzipped or not.

Layout: two zero bytes, the element type (8: unsigned byte), the number of dimensions, one big-endian 32-bit
size per dimension, then the elements in row-major order.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from hybridkit.errors import FileError

UNSIGNED_BYTE = 8
CHUNK = 2**20
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The array in an IDX file of unsigned bytes, uint8.

    Raises FileError if the file is missing, truncated, too long, or of another kind or number of dimensions.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == GZIP_MAGIC
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            return _read(cast(BinaryIO, file), path, dimensions)
    except OSError as error:  # gzip.BadGzipFile is one
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error):
        raise FileError(f"{path} is truncated or corrupted; get it again") from None


def _read(file: BinaryIO, path: Path, dimensions: int) -> Tensor:
    header = file.read(4)
    if len(header) < 4 or header[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise FileError(f"{path} is not an IDX file of bytes")
    if header[3] != dimensions:
        raise FileError(f"{path} has {header[3]} dimensions; {dimensions} are expected")
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise FileError(f"{path} is truncated; get it again")
    shape = [int.from_bytes(sizes[4 * i : 4 * i + 4], "big") for i in range(dimensions)]
    expected = math.prod(shape)
    data = bytearray()
    while len(data) <= expected and (chunk := file.read(CHUNK)):  # a false header cannot ask for more memory
        data += chunk
    if len(data) != expected:
        relation = "more" if len(data) > expected else "fewer"
        raise FileError(f"{path} holds {relation} bytes than its header says ({expected}); get it again")
    if expected == 0:
        raise FileError(f"{path} is empty")
    return torch.frombuffer(data, dtype=torch.uint8).view(shape)
