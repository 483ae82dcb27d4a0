"""How a network is quantised, as one value: training, quantising afterwards, files and flags all take it.

QuantConfig(weights="ternary-mse", granularity=Group(64), layers={"head": "fp32"})
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from hybridkit.errors import FileError, UsageError
from hybridkit.options import nearest
from hybridkit.packing.activations import Activations

if TYPE_CHECKING:
    from hybridkit.quant.protocol import Quantizer

Compute = Literal["fp32", "model"]
# Bits of embeddings; 8-tensor has one scale for all rows: more error, and codes that zstd shrinks well.
Embeddings = Literal[8, 4, "8-tensor"]

FP32 = "fp32"

# A quantizer's name, {"quantizer": name, option: value, ...}, "fp32" for none, or an instance.
QuantizerSpec: TypeAlias = "str | Mapping[str, Any] | Quantizer"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One scale for a whole weight."""

    def __str__(self) -> str:
        return "tensor"


@dataclass(frozen=True, slots=True)
class Channel:
    """One scale for each output channel: a row of the weight as a matrix [N, K]."""

    def __str__(self) -> str:
        return "channel"


@dataclass(frozen=True, slots=True)
class Group:
    """One scale for each `size` neighbouring weights of a row; the last group of a row may be shorter."""

    size: int

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise UsageError(f"a group holds at least one weight, not {self.size!r}; say 64, for example")

    def __str__(self) -> str:
        return f"group:{self.size}"


Granularity = Tensor | Channel | Group


def parse_granularity(text: object) -> Granularity:
    """`tensor`, `channel` or `group:64`, or what it means already. Raises UsageError for anything else."""
    if isinstance(text, Granularity):
        return text
    simple: dict[object, Granularity] = {"tensor": Tensor(), "channel": Channel()}
    if isinstance(text, str):
        if text in simple:
            return simple[text]
        kind, _, size = text.partition(":")
        if kind == "group" and size.isascii() and size.isdigit() and len(size) < 10:
            return Group(int(size))
    raise UsageError(f"{text!r} is no granularity; say tensor, channel or group:SIZE, as in group:64")


def parse_layers(texts: Iterable[str]) -> dict[str, QuantizerSpec]:
    """`["head=fp32"]` as `{"head": "fp32"}`. Raises UsageError for another form."""
    found: dict[str, QuantizerSpec] = {}
    for text in texts:
        pattern, equals, name = text.rpartition("=")
        if not (equals and name and pattern):
            raise UsageError(f"--layer {text}: expected PATTERN=QUANTIZER, as in head=fp32")
        found[pattern] = name
    return found


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """How a network is quantised; each field is validated on construction (UsageError).

    weights: the quantizer: a registered name, {"quantizer": name, option: value, ...}, or an instance.
    granularity: what has a scale: Tensor(), Channel() or Group(64), or the same as text (`group:64`).
    activations: `int8` (per token or sample) or `float`.
    layers: exceptions by pattern of layer names (fnmatch): a quantizer as in `weights`, or "fp32"; an option
        `granularity` gives it its own. Of several patterns that match, the last one counts.
    quantize_all: the last Linear and the embeddings too.
    embeddings: 8 bits, 4 bits in groups of 64, or `8-tensor`, 8 bits with one scale (all nbit), for the
        embeddings, the last Linear and what shares a weight with them.
    target_bits: a mean of bits per weight to spend (see allocation.py), 1 to 8; `weights` is then ternary.
    compute: `fp32`, or `model`: under float activations in the type of the activations (under autocast, its
        type) with fp32 scales, which is faster and no longer the bits of the packed network.
    insert_norms: an RMSNorm before each quantised linear layer whose input comes from none (norms.py); it
        changes the function, and is trained: for `prepare_qat_`, which then needs example inputs.
    """

    weights: QuantizerSpec = "ternary-absmean"
    granularity: Granularity | str = field(default_factory=Channel)
    activations: Activations = "int8"
    layers: Mapping[str, QuantizerSpec] = field(default_factory=dict)
    quantize_all: bool = False
    embeddings: Embeddings | None = None
    target_bits: float | None = None
    compute: Compute = "fp32"
    insert_norms: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "granularity", parse_granularity(self.granularity))
        _check_choice("activation mode", self.activations, get_args(Activations))
        _check_choice("compute type", self.compute, get_args(Compute))
        if self.compute == "model" and self.activations == "int8":
            raise UsageError(
                "int8 activations are exact in fp32 only; compute='model' goes with activations='float'"
            )
        if not isinstance(self.layers, Mapping) or not all(isinstance(name, str) for name in self.layers):
            raise UsageError(f"layers maps patterns of layer names to quantizers, it is not {self.layers!r}")
        for name in ("quantize_all", "insert_norms"):
            if not isinstance(value := getattr(self, name), bool):
                raise UsageError(f"{name} is True or False, not {value!r}")
        if self.embeddings not in (None, *get_args(Embeddings)) or isinstance(self.embeddings, float):
            raise UsageError(f"embeddings take 8, 4 or 8-tensor, not {self.embeddings!r}")
        bits = self.target_bits
        if bits is not None and not (type(bits) in (int, float) and 1 <= bits <= 8):
            shown = f"{bits:g}" if isinstance(bits, float) else repr(bits)
            raise UsageError(f"target bits go from 1 to 8 per weight, not {shown}")

    @property
    def targets(self) -> list[str]:
        """The quantizers that are code (`package.module:attribute`): using them imports it."""
        specs = [self.weights, *self.layers.values()]
        names = [spec.get("quantizer") if isinstance(spec, Mapping) else spec for spec in specs]
        return [name for name in names if isinstance(name, str) and ":" in name]

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `from_json` turns back into an equal value. UsageError for an instance."""
        return {
            "weights": _spec_json(self.weights),
            "granularity": str(self.granularity),
            "activations": self.activations,
            "layers": {pattern: _spec_json(spec) for pattern, spec in self.layers.items()},
            "quantize_all": self.quantize_all,
            "embeddings": self.embeddings,
            "target_bits": self.target_bits,
            "compute": self.compute,
            "insert_norms": self.insert_norms,
        }

    @classmethod
    def from_json(cls, value: object) -> QuantConfig:
        """What `to_json` wrote; fields may be missing. Raises FileError with one line for anything else."""
        if not isinstance(value, Mapping):
            raise FileError("the quantisation is not described by a table")
        known = [f.name for f in dataclasses.fields(cls)]
        for name in value:
            if name not in known:
                raise FileError(
                    f"the quantisation has an unknown entry {name!r}; {nearest(str(name), known)}"
                )
        try:
            _check_specs(value)
            return cls(**value)
        except UsageError as error:
            raise FileError(f"the description of the quantisation is damaged: {error}") from None


def config_from(
    config: QuantConfig | None,
    defaults: QuantConfig,
    *,
    quantizer: QuantizerSpec | None = None,
    options: Mapping[str, Any] | None = None,
    overrides: Mapping[str, QuantizerSpec] | None = None,
    **fields: Any,
) -> QuantConfig:
    """`config`, or `defaults` with what keyword arguments say; None and False say nothing.

    Raises UsageError for both at once, and for `options` without a quantizer's name.
    """
    given = {name: value for name, value in fields.items() if value is not None and value is not False}
    if overrides:
        given["layers"] = dict(overrides)
    weights = defaults.weights if quantizer is None else quantizer
    if options:
        if not isinstance(weights, str) or weights == FP32:
            raise UsageError("quantizer options go with a quantizer's name")
        weights = {"quantizer": weights, **options}
    if weights is not defaults.weights:
        given["weights"] = weights
    if config is None:
        return dataclasses.replace(defaults, **given)
    if given:
        raise UsageError(f"{min(given)} is said beside a QuantConfig; say it in the QuantConfig")
    return config


def _check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"no {what} is called {value!r}; {nearest(str(value), choices)}")


def _spec_json(spec: QuantizerSpec) -> str | dict[str, Any]:
    if isinstance(spec, str):
        return spec
    if not isinstance(spec, Mapping):
        raise UsageError(f"{type(spec).__name__} is an object and cannot be written down; name the quantizer")
    return {key: str(value) if isinstance(value, Granularity) else value for key, value in spec.items()}


def _check_specs(value: Mapping[str, Any]) -> None:
    """Only what a file can hold."""
    layers = value.get("layers", {})
    specs = [value.get("weights", ""), *(layers.values() if isinstance(layers, Mapping) else ())]
    for spec in specs:
        if not isinstance(spec, str | Mapping):
            raise UsageError(f"a quantizer is a name or a table with a name, not {spec!r}")
