"""Reading a packed model file. Everything is checked; whatever is wrong gives one FileError."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.compression import ZSTD_MAGIC, decompressed_limit, decompressing
from hybridkit.packing.container import MAX_HEADER, Header, decode_header
from hybridkit.packing.digests import CheckedData, block_hashes, identity, sign
from hybridkit.packing.layers import LayerSpec, PackedLayer
from hybridkit.packing.shards import beside, index_path, index_text, join, read_index
from hybridkit.packing.table import FORMAT, GATHERED, VERSION, Table, check_names, decode_table
from hybridkit.packing.version1 import read_version1

_T = TypeVar("_T")


class Pieces(Mapping[str, _T], Generic[_T]):
    """Layers or tensors of a file by name; each is read and checked when it is first asked for."""

    def __init__(self, produce: Mapping[str, Callable[[], _T]]) -> None:
        self._produce = produce
        self._made: dict[str, _T] = {}

    def __getitem__(self, name: str) -> _T:
        if name not in self._made:
            self._made[name] = self._produce[name]()
        return self._made[name]

    def producer(self, name: str) -> Callable[[], _T]:
        """What reads one piece."""
        return self._produce[name]

    def __contains__(self, name: object) -> bool:
        return name in self._produce  # Mapping would read the piece

    def __iter__(self) -> Iterator[str]:
        return iter(self._produce)

    def __len__(self) -> int:
        return len(self._produce)


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: its table, checked, and its pieces, which check themselves."""

    table: Table
    layers: Pieces[PackedLayer]
    tensors: Pieces[NDArray[Any]]
    identity: str = ""  # the hash of the header


def open_packed(path: str | os.PathLike[str]) -> Content:
    """Map a packed model and check its header; one in several files is opened by its index or its own name.

    A compressed file is unfolded into memory. Raises FileError if a file is missing, truncated, corrupted, of
    another kind or from a newer version; the pieces raise it for content that is not what was written.
    """
    path, index = Path(path), index_path(Path(path))
    with told(path):
        several = path == index or (index.exists() and not path.exists())
        content = _open_index(index) if several else _open(path)
        check_names(content.table.layers, content.table.tensors, content.table.tied)
        return content


def _open_index(index: Path) -> Content:
    found = read_index(index)
    files = dict.fromkeys(found["weight_map"].values())
    contents = {name: _open(beside(index, name)) for name in files}
    tables = {name: content.table for name, content in contents.items()}
    identities = {name: content.identity for name, content in contents.items()}
    if not contents or json.dumps(found) != json.dumps(json.loads(index_text(tables, identities))):
        raise FileError("its index does not fit its files; they are of different models, or one is missing")
    layers = {name: of.layers.producer(name) for of in contents.values() for name in of.layers}
    tensors = {name: of.tensors.producer(name) for of in contents.values() for name in of.tensors}
    return Content(join(tables), Pieces(layers), Pieces(tensors))


def _open(path: Path) -> Content:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        compressed = file.read(len(ZSTD_MAGIC)) == ZSTD_MAGIC
        file.seek(0)
        if not compressed:
            return _read(path, file, size, lambda header, bytes_: _mapped(file, size, header, bytes_))
        stream, limit = decompressing(file), decompressed_limit(size)
        return _read(path, stream, limit, lambda header, bytes_: _unfolded(stream, limit - header, bytes_))


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Whatever goes wrong is said of this file, in one line."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (FileError, UsageError) as error:
        raise FileError(f"{path} is not a usable packed model: {error}") from None


def _read(
    path: Path, stream: BinaryIO, limit: int, section: Callable[[int, int], NDArray[np.uint8]]
) -> Content:
    """`section(header bytes, data bytes)` gives what comes after the header, all of it."""
    length = bytes(_take(stream, 8, limit))
    size = int.from_bytes(length, "little")
    if size > MAX_HEADER:
        raise FileError("it is not a safetensors file")
    text = bytes(_take(stream, size, limit - 8))
    header = decode_header(text)
    if header.metadata.get("format") != FORMAT:
        raise FileError("it is a plain safetensors file; make a packed one with `hybridkit quantize`")
    if (version := header.field("version")) == "1":
        return _version1(length + text, header, section(8 + size, header.data_bytes))
    if version != VERSION:
        raise FileError(
            f"it has format version {version!r:.20}, this hybridkit reads 1 and {VERSION}; upgrade"
        )
    hashes = header.field("sha256")
    if sign(length + text, hashes) != length + text:
        raise FileError("its header does not match its SHA-256; the file is corrupted")
    table = decode_table(header.field("table"))
    if dict(header.tensors) != table.entries():
        raise FileError("its header does not fit its table")
    data = CheckedData(section(8 + size, header.data_bytes), block_hashes(hashes, header.data_bytes))
    return _pieces(path, table, header, data)


def _pieces(path: Path, table: Table, header: Header, data: CheckedData) -> Content:
    begins, position = {}, header.begins.get(GATHERED, 0)
    placed = table.placed()
    for name, spec in placed.items():
        begins[name] = header.begins.get(name, position)
        position += 0 if name in header.begins else spec.nbytes

    def array(name: str) -> NDArray[Any]:
        spec, begin = placed[name], begins[name]
        with told(path):
            content = data.take(name, begin, begin + spec.nbytes)
        if name not in header.begins:  # a small tensor may lie at any byte: copied, it is aligned
            content = content.copy()
        return content.view(spec.numpy).reshape(spec.shape)

    def layer(spec: LayerSpec) -> PackedLayer:
        codes, *numbers = (array(name) for name in spec.tensor_specs())
        scale, *offset = (each.astype(np.float32, copy=False) for each in numbers)
        with told(path):
            made = PackedLayer(**vars(spec), codes=codes, scale=scale, offset=offset[0] if offset else None)
            made.zeros  # noqa: B018 - refuses bytes that no code gives
        return made

    layers = {spec.name: partial(layer, spec) for spec in table.layers}
    tensors = {name: partial(array, name) for name in table.tensors}
    return Content(table, Pieces(layers), Pieces(tensors), identity(header))


def _version1(raw: bytes, header: Header, data: NDArray[np.uint8]) -> Content:
    layers, tensors, table = read_version1(raw, header, data)
    return Content(
        table,
        Pieces({name: partial(layers.__getitem__, name) for name in layers}),
        Pieces({name: partial(tensors.__getitem__, name) for name in tensors}),
    )


def _mapped(file: BinaryIO, size: int, header: int, data_bytes: int) -> NDArray[np.uint8]:
    if header + data_bytes > size:
        raise FileError("it is truncated, or announces more content than it can hold")
    if header + data_bytes < size:
        raise FileError("it goes on after its last tensor")
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8)[header:]


def _unfolded(stream: BinaryIO, limit: int, data_bytes: int) -> NDArray[np.uint8]:
    data = np.frombuffer(_take(stream, data_bytes, limit), np.uint8)
    if stream.read(1):
        raise FileError("it goes on after its last tensor")
    return data


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
