"""Writing a packed model layer by layer, so that only one layer's content is in memory at a time.

What the pieces turn out to be goes into the header, which comes first. So they go to a nameless file beside
the target, as they are made, and from there, in their order, behind the finished header.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.atomic import atomic_file
from hybridkit.packing.compression import compress as zstd_compress
from hybridkit.packing.container import TensorSpec, decode_header, encode_header
from hybridkit.packing.digests import BLOCK, digests, hash_field, identity, sign
from hybridkit.packing.layers import LayerSpec, PackedLayer
from hybridkit.packing.shards import index_path, index_text, split
from hybridkit.packing.sizes import Sizes, measure
from hybridkit.packing.table import FORMAT, VERSION, Table, check_names

SHARD_BYTES: Final = 2_000_000_000  # a model with more goes into several files


@dataclass(frozen=True, slots=True)
class LayerSource:
    """A layer that is packed when its turn comes: `produce` returns it, with content.

    Its `scale_type` may differ from what `spec` says: only the content tells how exact a scale must be.
    """

    spec: LayerSpec
    produce: Callable[[], PackedLayer]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A tensor that is fetched when its turn comes."""

    spec: TensorSpec
    produce: Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class ModelSource:
    """A packed model whose content is produced piece by piece.

    tensors, tied, metadata: as in `Table`.
    """

    layers: Sequence[LayerSource]
    tensors: Mapping[str, TensorSource] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names([s.spec for s in self.layers], self.tensors, self.tied)

    def table(self) -> Table:
        """What the file will hold, as announced."""
        tensors = {name: tensor.spec for name, tensor in self.tensors.items()}
        return Table([s.spec for s in self.layers], tensors, self.tied, self.metadata)


def write_packed(
    path: str | os.PathLike[str],
    source: ModelSource,
    *,
    compress: Literal["zstd"] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Sizes:
    """Write a packed model and return its sizes; it appears whole or not at all.

    More than `shard_bytes` become several files and an index, `<path>.index.json` (see shards.py).
    Each layer is produced, written and forgotten in turn; the disk needs room for everything twice. Raises
    UsageError for content that differs from its specification, FileError if it cannot be written.
    """
    path = Path(path)
    if compress not in (None, "zstd"):
        raise UsageError(f"there is no compression {compress!r}; valid: zstd")
    source.table().encode()  # what the format cannot hold is said before the work
    try:
        with tempfile.TemporaryFile(dir=path.parent) as spool:
            table, begins = _produce(spool, source)
            parts = split(table, path, shard_bytes)
            headers = {file: _write(file, part, spool, begins, compress) for file, part in parts.items()}
        if path not in parts:
            _write_index(path, {file.name: part for file, part in parts.items()}, headers)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    written = [*parts] if path in parts else [*parts, index_path(path)]
    return measure(table.layers, table.tensors, sum(file.stat().st_size for file in written))


def header_bytes(table: Table) -> int:
    """Bytes of a file's header, its length included."""
    return len(_header(table, bytes(32 * -(-data_bytes(table) // BLOCK))))


def data_bytes(table: Table) -> int:
    """Bytes of a file's data section."""
    return sum(spec.nbytes for spec in table.entries().values())


def _produce(spool: BinaryIO, source: ModelSource) -> tuple[Table, dict[str, int]]:
    """All content into `spool`: what it turned out to be, and where each tensor begins."""
    begins: dict[str, int] = {}
    layers: list[LayerSpec] = []

    def put(name: str, array: NDArray[Any], spec: TensorSpec) -> None:
        if TensorSpec.of(array.dtype, array.shape) != spec:
            raise UsageError(
                f"{name} became {array.dtype} {list(array.shape)}, not {spec.numpy} {list(spec.shape)}"
            )
        begins[name] = spool.tell()
        spool.write(np.ascontiguousarray(array, spec.numpy).reshape(-1).view(np.uint8).data)

    for layer in source.layers:
        made = layer.produce()
        if replace(made.spec, scale_type=layer.spec.scale_type) != layer.spec:
            raise UsageError(f"layer {layer.spec.name!r} was packed differently from what was announced")
        made.zeros  # noqa: B018 - refuses bytes that no code gives
        layers.append(made.spec)
        for (name, spec), array in zip(made.tensor_specs().items(), made.arrays(), strict=True):
            put(name, array, spec)
        del made, array  # or two layers would be in memory while the next is produced
    for name, tensor in source.tensors.items():
        put(name, tensor.produce(), tensor.spec)
    return replace(source.table(), layers=layers), begins


def _write(
    path: Path,
    table: Table,
    spool: BinaryIO,
    begins: Mapping[str, int],
    compress: Literal["zstd"] | None,
) -> bytes:
    """One file, from what lies in `spool`; returns its header."""
    content = [(begins[name], spec.nbytes) for name, spec in table.placed().items()]
    header = _header(table, digests(_chunks(spool, content)))
    with atomic_file(path) as file:
        if compress is None:
            file.write(header)
            for chunk in _chunks(spool, content):
                file.write(chunk)
        else:
            zstd_compress(
                itertools.chain([header], _chunks(spool, content)), len(header) + data_bytes(table), file
            )
    return header


def _write_index(path: Path, parts: Mapping[str, Table], headers: Mapping[Path, bytes]) -> None:
    """The index, last: it holds the hashes of the files it goes with. A single file of before goes."""
    identities = {file.name: identity(decode_header(header[8:])) for file, header in headers.items()}
    with atomic_file(index_path(path)) as file:
        file.write(index_text(parts, identities).encode())
    path.unlink(missing_ok=True)


def _chunks(spool: BinaryIO, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The content of spans (begin, bytes), a block at a time."""
    for begin, size in spans:
        for start in range(begin, begin + size, BLOCK):
            spool.seek(start)
            yield spool.read(min(BLOCK, begin + size - start))


def _header(table: Table, hashes: bytes) -> bytes:
    value = hash_field(hashes)
    metadata = {"format": FORMAT, "version": VERSION, "table": table.encode(), "sha256": value}
    return sign(encode_header(table.entries(), metadata), value)
