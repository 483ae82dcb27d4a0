"""What each tensor of a file is: its name, its type there, and its content, made when it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import UsageError
from hybridkit.exporting.gguf.architectures import Architecture, interleaved
from hybridkit.packing.ggml import TYPES, BlockType, Floats, to_blocks
from hybridkit.packing.layers import LayerSpec, PackedLayer
from hybridkit.packing.model import PackedModel

_FLOATS: Final = {"F32": (0, 4), "F16": (1, 2), "BF16": (30, 2)}  # number in the file, bytes
_TERNARY: Final = ("TQ2_0", "Q2_0")  # TQ2_0 first: llama.cpp has vector code for it
_ORDER: Final = ("Q1_0", *_TERNARY, "Q4_0", "Q4_1", "Q8_0")
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file.

    key: its name in the state dictionary. type, number: ggml's. shape: outermost dimension first. content:
    its bytes. block: how a quantised one is read. order: where each row is from, None: as they were.
    """

    name: str
    key: str
    type: str
    number: int
    shape: tuple[int, ...]
    nbytes: int
    content: Callable[[], NDArray[Any]]
    block: BlockType | None = None
    order: NDArray[np.intp] | None = None


def tensors(
    packed: PackedModel, architecture: Architecture, floats: Floats, ternary: str | None
) -> Iterator[Stored]:
    """All of them. ternary: the type of ternary layers, None: the best that fits each.

    Raises UsageError for a tensor that the architecture has no place for, and for a layer that fits no type.
    """
    stored = {_place(architecture, layer.weight_name): layer for layer in packed.table().layers}
    loose = {_place(architecture, name): name for name in packed.table().tensors}
    tied = {_place(architecture, alias): _place(architecture, name) for alias, name in packed.tied.items()}
    if wrong := [alias for alias, name in tied.items() if (alias, name) != (_HEAD, _EMBEDDING)]:
        raise UsageError(f"llama.cpp has no {architecture.name} whose {wrong[0]} is another tensor")
    for name, spec in stored.items():
        yield _layer(name, spec, partial(packed.layers.__getitem__, spec.name), architecture, ternary)
    for name, key in loose.items():
        shape, load = packed.table().tensors[key].shape, partial(packed.tensors.__getitem__, key)
        yield _loose(name, key, shape, load, architecture, floats)
    for name, array in architecture.more.items():
        yield _loose(name, name, array.shape, partial(np.asarray, array), architecture, floats)


def _place(architecture: Architecture, key: str) -> str:
    # our own head is tied to the embedding and has no name of its own
    name = _HEAD if key == "head.weight" else architecture.rename(key)
    if name is None:
        raise UsageError(f"llama.cpp's {architecture.name} has no place for {key}; export .onnx")
    return name


def _layer(
    name: str,
    spec: LayerSpec,
    load: Callable[[], PackedLayer],
    architecture: Architecture,
    ternary: str | None,
) -> Stored:
    kind, sign = type_for(spec, ternary)
    N, K = spec.matrix_shape
    order = _order(architecture, name, N)

    def content() -> NDArray[np.uint8]:
        layer = load()
        codes, scale, offset = layer.unpack(), layer.scale, layer.offset
        if order is not None:
            codes, scale = codes[order], scale[order]
            offset = None if offset is None else offset[order]
        if np.abs(scale).max(initial=0) > np.finfo(np.float16).max:
            raise UsageError(f"the layer {spec.name!r} has a scale beyond fp16, which .gguf files hold")
        return to_blocks(kind, codes * np.int8(sign), scale * sign, spec.group_size, offset)

    nbytes = N * K // kind.size * kind.bytes
    return Stored(name, spec.weight_name, kind.name, kind.number, (N, K), nbytes, content, kind, order)


def type_for(spec: LayerSpec, ternary: str | None = None) -> tuple[BlockType, int]:
    """The type that holds a layer, and the sign that its codes change to fit. UsageError where none does."""
    if spec.kind not in ("linear", "embedding"):
        raise UsageError(f"the layer {spec.name!r} is a {spec.kind}; .gguf files hold linear layers here")
    levels = spec.levels
    wanted = [TYPES[ternary]] if ternary and levels == (-1, 0, 1) else [TYPES[name] for name in _ORDER]
    turned = tuple(sorted(-level for level in levels))
    fitting = [
        (kind, sign)
        for kind in wanted
        for sign, these in ((1, levels), (-1, turned))
        if kind.holds(these) and kind.has_offset == spec.has_offset
    ]
    fewest = min((kind.bits for kind, _ in fitting if kind.bits < 4), default=math.inf)
    for kind, sign in fitting:
        if kind.bits > 4 and (fewest < 4 or spec.bits <= 2):
            break  # never twice the size, silently
        if spec.matrix_shape[1] % kind.size == 0 and spec.group_size % kind.size == 0:
            return kind, sign
    K, group = spec.matrix_shape[1], spec.group_size or "a row"
    tried = ", ".join(dict.fromkeys(f"{kind.name} of {kind.size}" for kind, _ in fitting)) or "none"
    raise UsageError(
        f"the layer {spec.name!r} has rows of {K} weights and a scale per {group}, which no whole number of "
        f"llama.cpp's blocks makes ({tried}); quantise it with groups of a multiple of them, with 4 or 8 "
        "bits in groups of 32, or leave it in full precision (--layer)"
    )


def _loose(
    name: str,
    key: str,
    shape: tuple[int, ...],
    load: Callable[[], NDArray[Any]],
    architecture: Architecture,
    floats: Floats,
) -> Stored:
    kind = floats if len(shape) > 1 else "F32"  # vectors are added and multiplied in fp32
    number, width = _FLOATS[kind]
    order = _order(architecture, name, shape[0])

    def content() -> NDArray[Any]:
        array = load().astype(np.float32)
        return _as(array if order is None else array[order], kind)

    return Stored(name, key, kind, number, shape, math.prod(shape) * width, content, order=order)


def _order(architecture: Architecture, name: str, rows: int) -> NDArray[np.intp] | None:
    heads = architecture.heads(name)
    return interleaved(rows, heads) if heads else None


def _as(array: NDArray[np.float32], kind: Floats) -> NDArray[Any]:
    if kind == "BF16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16).view(np.int16)
    return array.astype(np.float16 if kind == "F16" else np.float32)
