"""Writing a packed model file layer by layer, so that only one layer's content is in memory at a time."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.atomic import atomic_file
from hybridkit.packing.compression import compress as zstd_compress
from hybridkit.packing.container import METADATA, TensorSpec, compact_json, encode_header, place
from hybridkit.packing.layers import LayerSpec, PackedLayer
from hybridkit.packing.sizes import Sizes, measure

FORMAT = "hybridkit.packed"
VERSION = "1"
NO_HASH = "0" * 64  # holds the place of a SHA-256 that is not known yet


@dataclass(frozen=True, slots=True)
class LayerSource:
    """A layer that is packed when its turn comes: `produce` returns it, with content."""

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

    tensors: everything that is not packed, by its name in the state dictionary.
    tied: names of weights that are another weight: alias -> the name of the stored one.
    metadata: JSON values; by convention `task`, `model`, `inputs` (a list of name, shape, dtype), `commit`.
    """

    layers: Sequence[LayerSource]
    tensors: Mapping[str, TensorSource] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names([s.spec for s in self.layers], self.tensors, self.tied)


def check_names(layers: Sequence[LayerSpec], tensors: Mapping[str, Any], tied: Mapping[str, str]) -> None:
    """Raise UsageError unless every name is there once and every alias points at a stored weight."""
    stored: set[str] = set(tensors)
    if METADATA in stored:
        raise UsageError(f"a tensor cannot be called {METADATA!r}")
    for layer in layers:
        names = {layer.weight_name, *layer.tensor_specs()}
        if clash := names & stored:
            raise UsageError(f"the packed model would hold {min(clash)!r} twice")
        stored |= names
    for alias, canonical in tied.items():
        if alias in stored:
            raise UsageError(f"{alias!r} is stored itself and cannot be tied to {canonical!r}")
        if canonical not in stored:
            raise UsageError(f"{alias!r} is tied to {canonical!r}, which the packed model does not hold")


def write_packed(
    path: str | os.PathLike[str], source: ModelSource, *, compress: Literal["zstd"] | None = None
) -> Sizes:
    """Write a packed model file and return its sizes; the file appears whole or not at all.

    Each layer is produced, written and forgotten in turn. Compression needs the uncompressed file for a
    moment, beside the target. Raises UsageError for content that differs from its specification, FileError
    if the file cannot be written.
    """
    if compress not in (None, "zstd"):
        raise UsageError(f"there is no compression {compress!r}; valid: zstd")
    with atomic_file(path) as file:
        if compress is None:
            _write(file, source)
        else:
            with tempfile.TemporaryFile(dir=Path(path).parent) as plain:
                _write(plain, source)
                plain.seek(0)
                zstd_compress(plain, file)
        file_bytes = file.seek(0, os.SEEK_END)
    tensors = {name: tensor.spec for name, tensor in source.tensors.items()}
    return measure([s.spec for s in source.layers], tensors, file_bytes)


def header_bytes(source: ModelSource) -> int:
    """Bytes of the file's header, its length included: fixed before any content is known."""
    return len(_header(source))


def file_specs(source: ModelSource) -> dict[str, TensorSpec]:
    """Every tensor of the file, by name."""
    specs = {name: tensor.spec for name, tensor in source.tensors.items()}
    for layer in source.layers:
        specs |= layer.spec.tensor_specs()
    return specs


def _write(file: BinaryIO, source: ModelSource) -> None:
    start = header_bytes(source)
    begins = place(file_specs(source))
    hashes: dict[str, str] = {}
    zeros: dict[str, int] = {}

    def put(name: str, array: NDArray[Any], spec: TensorSpec) -> None:
        if TensorSpec.of(array.dtype, array.shape) != spec:
            raise UsageError(
                f"{name} became {array.dtype} {list(array.shape)}, not {spec.numpy} {list(spec.shape)}"
            )
        content = np.ascontiguousarray(array, spec.numpy).reshape(-1).view(np.uint8).data
        hashes[name] = hashlib.sha256(content).hexdigest()
        file.seek(start + begins[name])
        file.write(content)

    for layer in source.layers:
        made = layer.produce()
        if made.spec != layer.spec:
            raise UsageError(f"layer {layer.spec.name!r} was packed differently from what was announced")
        zeros[made.name] = made.zeros
        for (name, spec), array in zip(made.tensor_specs().items(), made.arrays(), strict=True):
            put(name, array, spec)
        del made, array  # or two layers would be in memory while the next is produced
    for name, tensor in source.tensors.items():
        put(name, tensor.produce(), tensor.spec)
    file.seek(0)
    file.write(_header(source, zeros, hashes, reserve=start))


def _header(
    source: ModelSource,
    zeros: Mapping[str, int] | None = None,
    hashes: Mapping[str, str] | None = None,
    reserve: int = 0,
) -> bytes:
    """The header; what is not known yet gets a place holder that is at least as long."""
    specs = file_specs(source)
    rows = []
    for layer in source.layers:
        count = layer.spec.weights if zeros is None else zeros[layer.spec.name]
        rows.append(asdict(layer.spec) | {"zeros": count})
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "layers": compact_json(rows),
        "tied": compact_json(dict(source.tied)),
        "metadata": compact_json(dict(source.metadata)),
        "hashes": compact_json({name: hashes[name] if hashes else NO_HASH for name in place(specs)}),
        "sha256": NO_HASH,
    }
    header = encode_header(specs, metadata, reserve)
    return header if hashes is None else sign(header, NO_HASH)


def sign(header: bytes, placeholder: str) -> bytes:
    """The header with its own SHA-256 in the place of `placeholder`; hashed with zeros in that place."""
    before, found, after = header.rpartition(_sha_field(placeholder))
    if not found:
        raise FileError("its header holds no SHA-256 of itself")
    digest = hashlib.sha256(before + _sha_field(NO_HASH) + after).hexdigest()
    return before + _sha_field(digest) + after


def _sha_field(digest: str) -> bytes:
    return f'"sha256":"{digest}"'.encode()
