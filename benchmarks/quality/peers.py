"""What other tools make of a weight: bytes as they store it, and the weight that is left.

Each is the tool's own code: ggml's `ggml_quantize_chunk`, out of the library of `xllamacpp`, read back by
`gguf`; `hqq`; the quantisers behind ONNX Runtime's MatMulNBits. A weight is float32 [N, K].
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridkit.errors import UsageError

Importance = Tensor | None  # float32 [K]: the mean square of what meets each column
Stored = tuple[int, Tensor]  # bytes, and the weight that they stand for
Store = Callable[[Tensor, Importance], Stored]

BLOCK: Final = 256  # columns of a block of the K types
# What llama.cpp takes instead where a row is no whole number of blocks of 256 (llama-quant.cpp).
FALLBACK: Final = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ3_S": "IQ4_NL",
    "IQ2_S": "IQ4_NL",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """A tool with its setting, for the layers of blocks and for the embedding (which the head shares)."""

    name: str
    layers: Store
    embedding: Store


def ggml(kind: str, importance: bool = False) -> Store:
    """A type of ggml; with `importance` it minimises errors weighed so, as llama.cpp's imatrix has it."""

    def store(weight: Tensor, squares: Importance) -> Stored:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        N, K = weight.shape
        used = FALLBACK.get(kind, kind) if K % BLOCK else kind
        number = GGMLQuantizationType[used]
        library = _library()
        made = np.zeros((N, library.ggml_row_size(number, K)), np.uint8)
        source = np.ascontiguousarray(weight.numpy(), np.float32)
        weights = None
        if importance and squares is not None:
            weights = np.ascontiguousarray(squares.numpy(), np.float32)
        written = library.ggml_quantize_chunk(
            int(number),
            source.ctypes.data_as(ctypes.c_void_p),
            made.ctypes.data_as(ctypes.c_void_p),
            0,
            N,
            K,
            None if weights is None else weights.ctypes.data_as(ctypes.c_void_p),
        )
        assert written == made.nbytes
        return made.nbytes, torch.from_numpy(dequantize(made, number).astype(np.float32))

    return store


@cache
def _library() -> Any:
    found = find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        raise UsageError("llama.cpp's types come from xllamacpp: pip install xllamacpp")
    [path] = Path(found.submodule_search_locations[0]).glob("xllamacpp*.so")
    library = ctypes.CDLL(str(path))
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    ]
    return library


def hqq(bits: int, group: int) -> Store:
    """Half-quadratic quantisation, zero points and scales in fp16."""

    def store(weight: Tensor, _: Importance) -> Stored:
        try:
            from hqq.core.quantize import Quantizer
        except ImportError:
            raise UsageError("HQQ comes from hqq: pip install hqq") from None
        codes, known = Quantizer.quantize(
            weight, nbits=bits, group_size=group, axis=1, device="cpu", compute_dtype=torch.float32
        )
        known["compute_dtype"] = torch.float32
        for name in ("scale", "zero"):
            known[name] = known[name].half().float()
        groups = weight.numel() // group
        return -(-weight.numel() * bits // 8) + 4 * groups, Quantizer.dequantize(codes, known).float()

    return store


def ort_rtn(bits: int, block: int) -> Store:
    """ONNX Runtime's own rounding, with zero points."""

    def store(weight: Tensor, _: Importance) -> Stored:
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            DefaultWeightOnlyQuantizer,
        )

        config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=False, bits=bits)
        packed, scales, zeros = DefaultWeightOnlyQuantizer(config).qbits_block_quant(
            np.ascontiguousarray(weight.numpy().T)
        )
        N, K = weight.shape
        per_byte = 8 // bits
        codes = _unpacked(packed.reshape(N, -1), bits)[:, :K]
        blocks = -(-K // block)
        points = _unpacked(zeros.reshape(N, -(-blocks // per_byte)), bits)[:, :blocks]
        scale = scales.reshape(N, blocks)
        made = (codes - np.repeat(points, block, axis=1)[:, :K]) * np.repeat(scale, block, axis=1)[:, :K]
        # scales as fp16 are half of what they are here
        return packed.nbytes + zeros.nbytes + scales.nbytes // 2, torch.from_numpy(made.astype(np.float32))

    return store


def ort_hqq(bits: int, group: int) -> Store:
    """ONNX Runtime's HQQ: zero points in floating point."""

    def store(weight: Tensor, _: Importance) -> Stored:
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            HQQWeightOnlyQuantConfig,
            HQQWeightOnlyQuantizer,
        )

        quantizer = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=group, bits=bits))
        codes, scale, zero = quantizer.quantize_internal(weight, bits=bits, group_size=group)
        K = weight.shape[1]
        wide = (each.float().repeat_interleave(group, dim=1)[:, :K] for each in (zero, scale))
        zeros, scales = wide
        made = (codes.float()[:, :K] - zeros) * scales
        return weight.numel() * bits // 8 + 2 * (scale.numel() + zero.numel()), made

    return store


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.float32]:
    """Codes of `bits` each, the first in the lowest."""
    digits = [(packed >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)]
    return np.stack(digits, axis=-1).reshape(len(packed), -1).astype(np.float32)


Q8: Final = ggml("Q8_0")
PEERS: Final = (
    Peer("llama.cpp Q8_0", Q8, Q8),
    *(
        Peer(f"llama.cpp {kind}{', imatrix' if weighed else ''}", ggml(kind, weighed), Q8)
        for kind in ("Q4_0", "Q4_1", "Q4_K", "Q3_K", "Q2_K", "TQ2_0")
        for weighed in (False, True)
        if not (weighed and kind == "TQ2_0")  # it takes none
    ),
    *(Peer(f"ONNX Runtime RTN, 4 bits, {block}", ort_rtn(4, block), Q8) for block in (32, 64)),
    *(Peer(f"ONNX Runtime HQQ, 4 bits, {group}", ort_hqq(4, group), Q8) for group in (32, 64)),
    *(Peer(f"HQQ, {bits} bits, {group}", hqq(bits, group), Q8) for bits in (4, 3, 2) for group in (32, 64)),
    Peer("ONNX Runtime RTN, 2 bits, 32", ort_rtn(2, 32), Q8),
)
