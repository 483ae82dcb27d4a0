"""GGUF types that the package gguf does not read yet, and files that only look as if they had them.

llama.cpp has Q1_0 and Q2_0 since 2026; gguf 0.19 knows the name of the first alone. A fork writes the number
of Q2_0 with blocks of 128 weights, which anyone else reads as noise. I2_S is bitnet.cpp's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
I2_S: Final = 36


def teach_gguf() -> None:
    """Let the package gguf read the types that it lacks; what it knows itself stays."""
    for kind in (TYPES[name] for name in LATE):
        _teach(kind.name, kind.number, kind.size, kind.bytes, partial(_from_blocks, kind))
    _teach("I2_S", I2_S, 4, 1, from_i2_s)


def _teach(name: str, number: int, size: int, bytes_: int, dequantize: Callable[[Any], Any]) -> None:
    known: Any = gguf.GGMLQuantizationType
    if number not in known._value2member_map_:
        member = int.__new__(known, number)
        member._name_, member._value_ = name, number
        known._member_map_[name] = known._value2member_map_[number] = member
    member = known(number)
    gguf.GGML_QUANT_SIZES.setdefault(member, (size, bytes_))
    reader: Any = type(name, (), {"dequantize": staticmethod(dequantize)})  # what gguf looks up
    gguf.quants._type_traits.setdefault(member, reader)


def _from_blocks(kind: BlockType, tensor: NDArray[np.uint8]) -> NDArray[np.float32]:
    rows = tensor.reshape(-1, tensor.shape[-1])
    return from_blocks(kind, rows).reshape(*tensor.shape[:-1], -1)


def from_i2_s(tensor: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Weights of bitnet.cpp's I2_S, float32 [N, K], of codes uint8 [N, K / 4] as they lie in a mapped file.

    32 bytes hold 128 weights in the order of the rows, weight 32 p + i in byte i from bit 6 - 2 p on, q + 1.
    Behind all of them is the one scale, float32, beyond what `tensor` shows of the file. What llama-quantize
    of bitnet.cpp writes with four rows in a byte looks the same, and is not read right.
    Raises FileError for a digit that is no code, and a scale that is no number or beyond the file.
    """
    digits = tensor.reshape(-1, 1, 32) >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3
    scale = _behind(tensor, 4).view(np.float32)
    if not np.isfinite(scale).all() or (digits == 3).any():
        raise FileError("a tensor of the type I2_S holds the digit 3, or its scale is no finite number")
    weights: NDArray[np.float32] = (digits.astype(np.float32) - 1) * scale
    return weights.reshape(*tensor.shape[:-1], -1)


def _behind(tensor: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The bytes of the file that follow those of a tensor in it."""
    whole: Any = tensor
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    end = tensor.ctypes.data - whole.ctypes.data + tensor.nbytes
    found: NDArray[np.uint8] = np.asarray(whole).reshape(-1).view(np.uint8)[end : end + count]
    if len(found) < count:
        raise FileError("a tensor of the type I2_S ends before its scale")
    return found.copy()


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
