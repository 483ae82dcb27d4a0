"""Reading a packed model file. Everything is checked; whatever is wrong gives one FileError."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.compression import ZSTD_MAGIC, decompressed_limit, decompressing
from hybridkit.packing.container import MAX_HEADER, Header, decode_header, parse_json
from hybridkit.packing.layers import LayerSpec, PackedLayer
from hybridkit.packing.writer import FORMAT, VERSION, check_names, sign


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds, checked."""

    layers: dict[str, PackedLayer]
    tensors: dict[str, NDArray[Any]]
    tied: dict[str, str]
    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Row(LayerSpec):
    """A row of the layer table in the file."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    zeros: int


_ROWS = TypeAdapter(list[_Row])
_NAMES = TypeAdapter(dict[str, str])


def read_packed(path: str | os.PathLike[str]) -> Content:
    """Read and check a packed model file, compressed or not.

    Raises FileError if the file is missing, truncated, corrupted, of another kind or from a newer version.
    """
    try:
        with _open(Path(path)) as (stream, limit):
            return _read(stream, limit)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (FileError, UsageError) as error:
        raise FileError(f"{path} is not a usable packed model: {error}") from None


@contextmanager
def _open(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The uncompressed content as a stream, and the most bytes it may hold."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        compressed = file.read(len(ZSTD_MAGIC)) == ZSTD_MAGIC
        file.seek(0)
        if compressed:
            yield decompressing(file), decompressed_limit(size)
        else:
            yield file, size


def _read(stream: BinaryIO, limit: int) -> Content:
    length = bytes(_take(stream, 8, limit))
    size = int.from_bytes(length, "little")
    if size > MAX_HEADER:
        raise FileError("it is not a safetensors file")
    text = bytes(_take(stream, size, limit - 8))
    header = decode_header(text)
    _check_header(length + text, header)
    data = np.frombuffer(_take(stream, header.data_bytes, limit - 8 - size), np.uint8)
    if stream.read(1):
        raise FileError("it goes on after its last tensor")
    arrays = _arrays(header, data)
    rows = _parse(_ROWS, header, "layers")
    tied = _parse(_NAMES, header, "tied")
    layers = {row.name: _layer(row, arrays) for row in rows}
    check_names([*rows], arrays, tied)
    return Content(layers, arrays, tied, parse_json(_field(header, "metadata"), "metadata"))


def _take(stream: BinaryIO, size: int, limit: int) -> bytearray:
    """Exactly `size` bytes. The limit is known to be there (or to be harmless), so they can be allocated."""
    if size > limit:
        raise FileError("it is truncated, or announces more content than it can hold")
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise FileError("it is truncated")
        view = view[count:]
    return content


def _check_header(header: bytes, parsed: Header) -> None:
    if parsed.metadata.get("format") != FORMAT:
        raise FileError("it is a plain safetensors file; make a packed one with `hybridkit quantize`")
    version = _field(parsed, "version")
    if version != VERSION:
        raise FileError(f"it has format version {version!r:.20}, this hybridkit reads {VERSION}; upgrade")
    if sign(header, _field(parsed, "sha256")) != header:
        raise FileError("its header does not match its SHA-256; the file is corrupted")


def _arrays(header: Header, data: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    hashes = _parse(_NAMES, header, "hashes")
    if set(hashes) != set(header.tensors):
        raise FileError("its table of hashes does not fit its tensors")
    arrays = {}
    for name, spec in header.tensors.items():
        begin = header.begins[name]
        content = data[begin : begin + spec.nbytes]
        if hashlib.sha256(content.data).hexdigest() != hashes[name]:
            raise FileError(f"tensor {name!r} does not match its SHA-256; the file is corrupted")
        arrays[name] = content.view(spec.numpy).reshape(spec.shape)
    return arrays


def _layer(row: _Row, arrays: dict[str, NDArray[Any]]) -> PackedLayer:
    """The layer of a table row; takes its tensors out of `arrays`."""
    spec = {f.name: getattr(row, f.name) for f in fields(LayerSpec)}
    names = tuple(row.tensor_specs())
    for name in names:
        if name not in arrays:
            raise FileError(f"the tensor {name!r} is missing")
    codes, scale = (arrays.pop(name) for name in names)
    layer = PackedLayer(**spec, codes=codes, scale=scale)
    if layer.zeros != row.zeros:
        raise FileError(f"layer {row.name!r} has {layer.zeros} zeros, its table says {row.zeros}")
    return layer


def _field(header: Header, name: str) -> str:
    if name not in header.metadata:
        raise FileError(f"its header has no field {name!r}")
    return header.metadata[name]


def _parse(kind: TypeAdapter[Any], header: Header, name: str) -> Any:
    try:
        return kind.validate_json(_field(header, name))
    except ValidationError as error:
        raise FileError(f"its table of {name} is malformed: {error.errors()[0]['msg']}") from None
