"""The table of a packed file (version 2): what it holds, as compressed JSON without what is evident."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.activations import Activations
from hybridkit.packing.codecs import bits_of, codec
from hybridkit.packing.container import MAX_HEADER, METADATA, TensorSpec, aligned, compact_json, parse_json
from hybridkit.packing.layers import LayerKind, LayerSpec, ScaleType

FORMAT: Final = "hybridkit.packed"
VERSION: Final = "2"
SUFFIX: Final = ".hk.safetensors"

# zlib's preset dictionary: what nearly every table says. It is a part of the format and never changes.
DICTIONARY: Final = (
    b'"commit":"run":"task":"model":"metadata":{"inputs":[{"name":"input","shape":[1,"dtype":"int64float32"}],'
    b'"tied":{"group_size":"bits":"activations":"float","kind":"conv1d","conv2d","embedding","codec":"one-bit",'
    b'"two-bit","nbit2","nbit8","nbit4","quantizer":"binary"ternary-mse","nbit","norm.weight":["I64",[]],"BF16",['
    b'"F16",["F32",[.bias":["F32",["tensors":{"scale":"F16"}]{"layers":[{"name":"kind":"linear","codec":"base3",'
    b'"shape":[,"quantizer":"ternary-absmean","scale":"F16"},{"name":"'
)
GATHERED: Final = ".small"  # no tensor of a state dictionary can be called so
_LARGE: Final = 1 << 16  # bytes from which a tensor stands in the header under its own name


@dataclass(frozen=True, slots=True)
class Table:
    """The content of a packed file but for its bytes.

    tensors: everything that is not packed, by its name in the state dictionary.
    tied: weights that are another weight: alias -> the name of the stored one.
    metadata: JSON values; by convention `task`, `model`, `inputs` (a list of name, shape, dtype), `commit`.
    """

    layers: Sequence[LayerSpec]
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def placed(self) -> dict[str, TensorSpec]:
        """Every tensor of the file in the order of the data: large ones first, wide types first in both."""
        specs = dict(self.tensors)
        for layer in self.layers:
            specs |= layer.tensor_specs()
        large = {name: spec for name, spec in specs.items() if spec.nbytes >= _LARGE}
        return aligned(large) | aligned({name: spec for name, spec in specs.items() if name not in large})

    def entries(self) -> dict[str, TensorSpec]:
        """The tensors that the header names: large ones, and one of bytes for all others."""
        placed = self.placed()
        named = {name: spec for name, spec in placed.items() if spec.nbytes >= _LARGE}
        rest = sum(spec.nbytes for name, spec in placed.items() if name not in named)
        return named | {GATHERED: TensorSpec("U8", (rest,))} if rest else named

    def encode(self) -> str:
        """Compressed, in base 85."""
        content = {
            "layers": [_row(layer) for layer in self.layers],
            "tensors": {name: [spec.dtype, spec.shape] for name, spec in self.tensors.items()},
            "tied": dict(self.tied),
            "metadata": dict(self.metadata),
        }
        text = compact_json({key: value for key, value in content.items() if value}).encode()
        compressor = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zdict=DICTIONARY)
        return base64.b85encode(compressor.compress(text) + compressor.flush()).decode()


def check_names(layers: Sequence[LayerSpec], tensors: Mapping[str, Any], tied: Mapping[str, str]) -> None:
    """Raise UsageError unless every name is there once and every alias points at a stored weight."""
    stored: set[str] = set(tensors)
    if taken := stored & {METADATA, GATHERED}:
        raise UsageError(f"a tensor cannot be called {min(taken)!r}")
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


def decode_table(encoded: str) -> Table:
    """The inverse of `Table.encode`. Raises FileError, and UsageError for a layer that cannot be."""
    try:
        unfold = zlib.decompressobj(15, DICTIONARY)
        text = unfold.decompress(base64.b85decode(encoded), MAX_HEADER)
    except (ValueError, zlib.error):
        raise FileError("its table is corrupted") from None
    if not unfold.eof or unfold.unused_data:
        raise FileError("its table is corrupted, or longer than any")
    try:
        parse_json(text, "table")  # no key twice, no NaN
        found = _CONTENT.validate_json(text)
    except ValidationError as error:
        raise FileError(f"its table is malformed: {error.errors()[0]['msg']}") from None
    tensors = {name: TensorSpec.read(name, *of) for name, of in found.tensors.items()}
    return Table([row.spec() for row in found.layers], tensors, found.tied, found.metadata)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A layer in the table; fields that have their default are left out."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    name: str
    kind: LayerKind
    codec: str
    shape: list[int]
    bits: float | None = None  # those of all levels of the codec
    activations: Activations = "int8"
    group_size: int = 0
    quantizer: str = ""
    scale: ScaleType = "F32"
    offset: bool = False

    def spec(self) -> LayerSpec:
        return LayerSpec(
            name=self.name,
            kind=self.kind,
            codec=self.codec,
            shape=tuple(self.shape),
            bits=bits_of(codec(self.codec).levels) if self.bits is None else self.bits,
            activations=self.activations,
            group_size=self.group_size,
            quantizer=self.quantizer,
            scale_type=self.scale,
            has_offset=self.offset,
        )


@dataclass(frozen=True, kw_only=True)
class _Content:
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")
    layers: list[_Row] = field(default_factory=list)
    tensors: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


_CONTENT = TypeAdapter(_Content)


def _row(layer: LayerSpec) -> dict[str, Any]:
    values = asdict(layer)
    values["scale"], values["offset"] = values.pop("scale_type"), values.pop("has_offset")
    if layer.bits == bits_of(layer.levels):
        values["bits"] = None
    evident = {f.name: f.default for f in fields(_Row)}
    return {name: value for name, value in values.items() if value != evident[name]}
