"""GGUF types that the package gguf does not read yet, and files that only look as if they had them.

llama.cpp has Q1_0 and Q2_0 since 2026; gguf 0.19 knows the name of the first alone. A fork writes the number
of Q2_0 with blocks of 128 weights, which anyone else reads as noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import gguf
import gguf.quants
import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError
from hybridkit.packing.ggml import TYPES, BlockType, from_blocks

LATE: Final = ("Q1_0", "Q2_0")
Q2_0: Final = TYPES["Q2_0"]
FORK_BYTES: Final = 17  # of the fork's for 64 weights


def teach_gguf() -> None:
    """Let the package gguf read the types that it lacks; what it knows itself stays."""
    for kind in (TYPES[name] for name in LATE):
        known: Any = gguf.GGMLQuantizationType
        if kind.number not in known._value2member_map_:
            member = int.__new__(known, kind.number)
            member._name_, member._value_ = kind.name, kind.number
            known._member_map_[kind.name] = known._value2member_map_[kind.number] = member
        member = known(kind.number)
        gguf.GGML_QUANT_SIZES.setdefault(member, (kind.size, kind.bytes))
        gguf.quants._type_traits.setdefault(member, _reader(kind))


def _reader(kind: BlockType) -> Any:
    """What gguf looks up to dequantise a type: a class with this method."""

    def dequantize(tensor: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = tensor.reshape(-1, tensor.shape[-1])
        return from_blocks(kind, rows).reshape(*tensor.shape[:-1], -1)

    return type(kind.name, (), {"dequantize": staticmethod(dequantize)})


def refuse_fork(file: Path, text: str) -> None:
    """Raise FileError for a file of the fork: its tensors leave no room for blocks of 64."""
    for tensor, room in _with_room(file):
        weights = int(np.prod(tensor.shape))
        if tensor.tensor_type == Q2_0.number and room < weights // Q2_0.size * Q2_0.bytes:
            raise FileError(
                f"{text}: {tensor.name} has the type number of Q2_0, but blocks of 128 weights as a fork of "
                "llama.cpp writes them; convert it with that fork"
            )


def _with_room(file: Path) -> list[tuple[Any, int]]:
    """The tensors of a file, and the bytes from where each begins to where the next one does."""
    member: Any = gguf.GGMLQuantizationType(Q2_0.number)
    usual = gguf.GGML_QUANT_SIZES[member]
    gguf.GGML_QUANT_SIZES[member] = (Q2_0.size, FORK_BYTES)  # else the reader may run past the end
    try:
        found = sorted(gguf.GGUFReader(file).tensors, key=lambda tensor: tensor.data_offset)
    finally:
        gguf.GGML_QUANT_SIZES[member] = usual
    ends = [tensor.data_offset for tensor in found[1:]] + [file.stat().st_size]
    return [(tensor, end - tensor.data_offset) for tensor, end in zip(found, ends, strict=True)]
