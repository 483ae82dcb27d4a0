"""Files of format version 1, which are read for ever: every tensor named, a hash for each, tables as JSON."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from hybridkit.errors import FileError
from hybridkit.packing.container import Header, TensorSpec, parse_json
from hybridkit.packing.layers import LayerSpec, PackedLayer
from hybridkit.packing.table import Table


@dataclass(frozen=True, kw_only=True)
class _Row(LayerSpec):
    """A row of the layer table in the file."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    zeros: int


_ROWS = TypeAdapter(list[_Row])
_NAMES = TypeAdapter(dict[str, str])


def read_version1(
    raw: bytes, header: Header, data: NDArray[np.uint8]
) -> tuple[dict[str, PackedLayer], dict[str, NDArray[Any]], Table]:
    """Layers, tensors and table of a file with these header bytes and this data, all checked.

    Raises FileError and UsageError.
    """
    digest = header.field("sha256")
    before, found, after = raw.rpartition(f'"sha256":"{digest}"'.encode())
    blank = before + b'"sha256":"' + b"0" * 64 + b'"' + after
    if not found or hashlib.sha256(blank).hexdigest() != digest:
        raise FileError("its header does not match its SHA-256; the file is corrupted")
    arrays = _arrays(header, data)
    rows = _parse(_ROWS, header, "layers")
    tied = _parse(_NAMES, header, "tied")
    layers = {row.name: _layer(row, arrays) for row in rows}
    specs = {name: TensorSpec.of(array.dtype, array.shape) for name, array in arrays.items()}
    metadata = parse_json(header.field("metadata"), "metadata")
    return layers, arrays, Table([layer.spec for layer in layers.values()], specs, tied, metadata)


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


def _parse(kind: TypeAdapter[Any], header: Header, name: str) -> Any:
    try:
        return kind.validate_json(header.field(name))
    except ValidationError as error:
        raise FileError(f"its table of {name} is malformed: {error.errors()[0]['msg']}") from None
