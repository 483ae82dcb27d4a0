"""One quantised layer: what is known before its weights are quantised, and the packed layer itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import UsageError
from hybridkit.packing.activations import Activations
from hybridkit.packing.codecs import Codec, bits_of, codec
from hybridkit.packing.container import TensorSpec

LayerKind = Literal["linear", "conv1d", "conv2d", "embedding"]
ScaleType = Literal["F32", "F16"]

_DIMENSIONS: dict[LayerKind, int] = {"linear": 2, "conv1d": 3, "conv2d": 4, "embedding": 2}


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What a packed layer is, without its content. Seen as a matrix its weight is [N, K], N = shape[0].

    name: the module's name in the model ("" for the model itself).
    shape: of the weight: [out, in], [out, in/groups, k], [out, in/groups, kh, kw] or [entries, width].
    bits: information per weight, log2 of the number of levels the quantizer uses.
    group_size: columns that share a scale; 0: one scale per row.
    quantizer: name of the quantizer, for the record.
    scale_type: what a file holds the scales as; in memory they are float32.
    has_offset: whether weights are scale * code + offset, with an offset beside each scale.
    """

    name: str
    kind: LayerKind
    codec: str
    shape: tuple[int, ...]
    bits: float
    activations: Activations
    group_size: int = 0
    quantizer: str = ""
    scale_type: ScaleType = "F32"
    has_offset: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _DIMENSIONS:
            raise UsageError(f"layer {self.name!r}: kind {self.kind!r} is none of {', '.join(_DIMENSIONS)}")
        if len(self.shape) != _DIMENSIONS[self.kind] or any(n < 0 for n in self.shape):
            raise UsageError(
                f"layer {self.name!r}: {list(self.shape)} is not the shape of a {self.kind} weight"
            )
        if self.activations not in get_args(Activations):
            raise UsageError(
                f"layer {self.name!r}: activations {self.activations!r} are neither int8 nor float"
            )
        if self.scale_type not in get_args(ScaleType):
            raise UsageError(f"layer {self.name!r}: a scale is F32 or F16, not {self.scale_type!r}")
        if self.group_size < 0:
            raise UsageError(f"layer {self.name!r}: group size {self.group_size} is negative")
        most = bits_of(codec(self.codec).levels)
        if not 0 < self.bits <= most + 1e-9:
            raise UsageError(f"layer {self.name!r}: {self.bits} bits do not fit the codec {self.codec}")

    @property
    def weight_name(self) -> str:
        """The name of the weight in the state dictionary of the fp32 model."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """N and K."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def levels(self) -> tuple[int, ...]:
        """The code book of the codec, ascending."""
        return codec(self.codec).levels

    def tensor_specs(self) -> dict[str, TensorSpec]:
        """The tensors that hold this layer in a file, by name: codes, then scale, then offset."""
        N, K = self.matrix_shape
        numbers = TensorSpec(self.scale_type, (N, -(-K // self.group_size)) if self.group_size else (N,))
        specs = {
            f"{self.weight_name}.codes": TensorSpec("U8", (N, codec(self.codec).row_bytes(K))),
            f"{self.weight_name}.scale": numbers,
        }
        return specs | {f"{self.weight_name}.offset": numbers} if self.has_offset else specs


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedLayer(LayerSpec):
    """A layer with its content.

    codes: uint8 [N, B], packed by the codec.
    scale: float32 [N], or [N, ceil(K / group_size)]; finite, and exact in `scale_type`.
    offset: None, or with `has_offset` as scale.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        arrays: list[NDArray[Any]] = [self.codes, *self._numbers.values()]
        specs = replace(self.spec, scale_type="F32").tensor_specs()
        if len(arrays) != len(specs):
            raise UsageError(f"layer {self.name!r} is to have an offset, or not to have the one that it has")
        for (name, spec), array in zip(specs.items(), arrays, strict=True):
            if TensorSpec.of(array.dtype, array.shape) != spec:
                raise UsageError(
                    f"{name} is {array.dtype} {list(array.shape)}, not {spec.numpy} {list(spec.shape)}"
                )
        for what, numbers in self._numbers.items():
            if not np.isfinite(numbers).all():
                raise UsageError(f"layer {self.name!r} has {what} that is not finite")
            if self.scale_type == "F16" and not np.array_equal(as_fp16(numbers), numbers):
                raise UsageError(f"layer {self.name!r} has {what} that fp16 does not hold exactly")

    @property
    def _numbers(self) -> dict[str, NDArray[np.float32]]:
        """What stands beside the codes."""
        numbers = {"a scale": self.scale}
        return numbers if self.offset is None else numbers | {"an offset": self.offset}

    @property
    def spec(self) -> LayerSpec:
        """The layer without its content."""
        return LayerSpec(**{f.name: getattr(self, f.name) for f in fields(LayerSpec)})

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The content in the order and the types of `tensor_specs`."""
        stored = np.float16 if self.scale_type == "F16" else np.float32
        return self.codes, *(numbers.astype(stored, copy=False) for numbers in self._numbers.values())

    @property
    def zeros(self) -> int:
        """Number of weights whose code is zero: that are zero, unless there is an offset."""
        return self._codec.count_zeros(self.codes, self.matrix_shape[1])

    @property
    def zero_fraction(self) -> float:
        """Share of the weights that are zero; 0 for an empty layer and where there is an offset."""
        return self.zeros / self.weights if self.weights and self.offset is None else 0.0

    def unpack(self) -> NDArray[np.int8]:
        """The codes, int8 [N, K]. Raises FileError for a byte that no code gives."""
        return self._codec.unpack(self.codes, self.matrix_shape[1])

    def dequantize(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """The represented weight or some rows of it, float32: scale * code + offset of their row or group."""
        weight = self._codec.unpack(self.codes[rows], self.matrix_shape[1]).astype(np.float32)
        weight *= self._per_weight(self.scale[rows])
        if self.offset is not None:
            weight += self._per_weight(self.offset[rows])
        return weight.reshape(len(weight), *self.shape[1:])

    def _per_weight(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.group_size:
            return numbers[:, None]
        return np.repeat(numbers, self.group_size, axis=1)[:, : self.matrix_shape[1]]

    @property
    def _codec(self) -> Codec:
        return codec(self.codec)


def as_fp16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is left of float32 values that fp16 stores; infinite beyond 65,504."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)
