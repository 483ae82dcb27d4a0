"""The safetensors container: specifications of tensors <-> the header that describes them.

A file is an 8-byte little-endian header length, the JSON header (padded with spaces) and the tensors' bytes,
without gaps (https://github.com/huggingface/safetensors). Only what comes before the tensors is handled here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from hybridkit.errors import FileError, UsageError

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
METADATA = "__metadata__"  # the header's key beside the names of tensors
_ALIGNMENT = 8
_MOST_DIMENSIONS = 32  # what every NumPy can hold

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "F64": "<f8", "I64": "<i8", "U64": "<u8", "F32": "<f4", "I32": "<i4", "U32": "<u4",
        "F16": "<f2", "I16": "<i2", "U16": "<u2", "I8": "i1", "U8": "u1", "BOOL": "?",
    }.items()
}  # fmt: skip
_DTYPES["BF16"] = np.dtype(ml_dtypes.bfloat16)
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is before its content is known: safetensors' name of the type, and the shape."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, dtype: DTypeLike, shape: tuple[int, ...]) -> TensorSpec:
        """The specification of a NumPy array. Raises UsageError for a type the container does not know."""
        found = np.dtype(dtype).newbyteorder("<")
        if found not in _NAMES:
            raise UsageError(
                f"a packed model cannot hold {np.dtype(dtype)} tensors; convert to float32 first"
            )
        return cls(_NAMES[found], tuple(int(n) for n in shape))

    @classmethod
    def read(cls, name: str, dtype: Any, shape: Any) -> TensorSpec:
        """What a file says about the tensor `name`. Raises FileError for what no array is."""
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise FileError(f"tensor {name!r} has a type that packed models do not use")
        if not _is_sizes(shape):
            raise FileError(f"tensor {name!r} has a malformed shape or offsets")
        if len(shape) > _MOST_DIMENSIONS or math.prod(max(n, 1) for n in shape) * 8 >= 1 << 63:
            raise FileError(f"tensor {name!r} has a shape beyond all bounds")
        return cls(dtype, tuple(shape))

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy type, little-endian."""
        return _DTYPES[self.dtype]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the content."""
        return self.size * self.numpy.itemsize


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: the tensors, where each begins in the data section, and the metadata strings."""

    tensors: dict[str, TensorSpec]
    begins: dict[str, int]
    metadata: dict[str, str]

    @property
    def data_bytes(self) -> int:
        """Bytes of the data section."""
        return sum(spec.nbytes for spec in self.tensors.values())

    def field(self, name: str) -> str:
        """A metadata string. Raises FileError where there is none."""
        if name not in self.metadata:
            raise FileError(f"its header has no field {name!r}")
        return self.metadata[name]


def aligned(tensors: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The tensors in the order of the data: wide types first, then by name, so that all are aligned."""
    order = sorted(tensors, key=lambda name: (-tensors[name].numpy.itemsize, name))
    return {name: tensors[name] for name in order}


def encode_header(tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON header of tensors that lie one after the other, padded to a multiple of 8 bytes."""
    entries: dict[str, Any] = {METADATA: dict(metadata)}
    position = 0
    for name, spec in tensors.items():
        entries[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    text = compact_json(entries).encode()
    text = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise UsageError(f"the model's header needs {len(text):,} bytes; the format allows {MAX_HEADER:,}")
    return len(text).to_bytes(8, "little") + text


def decode_header(text: bytes) -> Header:
    """Parse and check the JSON header (without its length). Raises FileError if anything is out of order."""
    if not text.startswith(b"{"):
        raise FileError("it is not a safetensors file")
    entries = parse_json(text, "header")
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileError("the metadata of its header are not strings")
    tensors, spans = {}, []
    for name, entry in entries.items():
        tensors[name], begin = _decode_entry(name, entry)
        spans.append((begin, begin + tensors[name].nbytes, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise FileError(f"tensor {name!r} overlaps another or leaves a gap")
        position = end
    return Header(tensors, {name: begin for begin, _, name in spans}, metadata)


def _decode_entry(name: str, entry: Any) -> tuple[TensorSpec, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FileError(f"the header's entry of tensor {name!r} is malformed")
    offsets = entry["data_offsets"]
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise FileError(f"tensor {name!r} has a malformed shape or offsets")
    spec = TensorSpec.read(name, entry["dtype"], entry["shape"])
    if offsets[1] - offsets[0] != spec.nbytes:
        raise FileError(f"tensor {name!r} has offsets that do not fit its shape")
    return spec, offsets[0]


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def compact_json(value: Any) -> str:
    """JSON without spaces. Raises UsageError for what JSON cannot hold (NaN and infinity included)."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a packed model's metadata must be JSON values: {error}") from None


def parse_json(text: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object without duplicate keys. Raises FileError for anything else."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise FileError(f"its {what} is not valid JSON") from None
    if not isinstance(value, dict):
        raise FileError(f"its {what} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")
