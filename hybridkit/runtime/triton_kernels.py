"""Matrix products with packed weights on a GPU, in Triton. They read the same tiles as the native kernels.

A block of a tile is 64 bytes [16 rows, 4 bytes], so that neighbouring threads read neighbouring memory. With
P = 8 / bits digits in a byte, digit p of byte j of block b is column k = 4 P b + 4 p + j. Columns beyond K
meet an activation of zero, so that their digits do not matter.

int8 has the bits of arithmetic.py: integer sums, divisions and halves rounded as IEEE says, no fused
multiply-add. float sums in float32 what is multiplied in x's own type.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridkit.packing.tiles import tiled_shape
from hybridkit.runtime.arithmetic import PackedMatrix, check_matmul_input

_BITS: Final = {"ternary": 2, "binary": 1}
_MAGIC: Final = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer, halves to even
_INFINITY: Final = tl.constexpr(0x7F800000)
# Multiply, then add: fused, the last bit would be another one.
_NO_FUSION: Final[dict[str, Any]] = {"enable_fp_fusion": False}


def matmul(x: Tensor, weight: PackedMatrix) -> Tensor:
    """x [..., K] with a matrix in layout 1 -> [..., N] of x's type, which is not float32 under float."""
    check_matmul_input(x, weight.K)
    N, K, bits = weight.N, weight.K, _BITS[weight.kind]
    codes, scale, bias = weight.tiles()
    rows = x.reshape(-1, K).contiguous()
    tiles, blocks, *_ = tiled_shape(N, K, bits)
    M, int8 = len(rows), weight.activations == "int8"
    y = rows.new_empty((M, N))
    if M > 0:
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            x_scale = rows
            if int8:
                rows, x_scale = _quantized(rows)
            if M == 1:
                words = codes.view(torch.int32)
                _vector[(tiles,)](
                    rows, x_scale, words, scale, bias, y, N, K, blocks, bits, int8, BLOCKS=32, **_NO_FUSION
                )
            else:
                BM, BN = (16 if M <= 16 else 64), 64
                grid = (triton.cdiv(M, BM), triton.cdiv(N, BN))
                _matrix[grid](
                    rows,
                    x_scale,
                    codes,
                    scale,
                    bias,
                    y,
                    M,
                    N,
                    K,
                    blocks,
                    bits,
                    int8,
                    BM,
                    BN,
                    32,
                    **_NO_FUSION,
                )
    return y.reshape(*x.shape[:-1], N)


def _quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Activation codes int8 [M, K] and their scales float32 [M]."""
    M, K = rows.shape
    codes = torch.empty((M, K), dtype=torch.int8, device=rows.device)
    scale = torch.empty(M, dtype=torch.float32, device=rows.device)
    _quantize[(M,)](rows, codes, scale, K, BLOCK=1024, **_NO_FUSION)
    return codes, scale


@triton.jit  # type: ignore[untyped-decorator]
def _quantize(x, codes, scale, K, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row. Magnitudes are compared as bits, in which NaN > infinity > every number."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.int32)
    for first in range(0, K, BLOCK):
        k = first + column
        value = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    top = tl.max(largest, axis=0)
    finite = top < _INFINITY
    s_x = tl.div_rn(tl.maximum(tl.where(finite, top, 0).to(tl.float32, bitcast=True), 1e-5), 127.0)
    tl.store(scale + row, tl.where(finite, s_x, float("nan")))
    for first in range(0, K, BLOCK):
        k = first + column
        value = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
        divided = tl.div_rn(tl.where(finite, value, 0.0), tl.full([BLOCK], 1.0, tl.float32) * s_x)
        tl.store(codes + row * K + k, ((divided + _MAGIC) - _MAGIC).to(tl.int8), mask=k < K)


@triton.jit  # type: ignore[untyped-decorator]
def _vector(  # type: ignore[no-untyped-def]
    x, x_scale, words, scale, bias, y, N, K, blocks,
    BITS: tl.constexpr, INT8: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One row of x with one tile: the weights are read once, as one stream of words [blocks, 16]."""
    COLUMNS: tl.constexpr = 4 * (8 // BITS)
    tile = tl.program_id(0).to(tl.int64)
    row, b = tl.arange(0, 16), tl.arange(0, BLOCKS)
    total = tl.zeros([BLOCKS, 16], tl.int32 if INT8 else tl.float32)
    for first in range(0, blocks, BLOCKS):
        block = first + b
        inside = block < blocks
        word = tl.load(
            words + (tile * blocks + block[:, None]) * 16 + row[None, :], mask=inside[:, None], other=0
        )
        for i in tl.static_range(COLUMNS):
            k = block * COLUMNS + i
            value = tl.load(x + k, mask=inside & (k < K), other=0).to(total.dtype)
            digit = (word >> (i % 4 * 8 + i // 4 * BITS)) & (2**BITS - 1)
            total += value[:, None] * (digit * (3 - BITS) - 1).to(total.dtype)
    n = tile * 16 + row
    result = tl.sum(total, axis=0).to(tl.float32)
    factor = tl.load(scale + n, mask=n < N, other=0.0)
    if INT8:
        factor = tl.load(x_scale) * factor
    result = result * factor + tl.load(bias + n, mask=n < N, other=0.0)
    tl.store(y + n, result.to(y.dtype.element_ty), mask=n < N)


@triton.jit  # type: ignore[untyped-decorator]
def _matrix(  # type: ignore[no-untyped-def]
    x, x_scale, codes, scale, bias, y, M, N, K, blocks,
    BITS: tl.constexpr, INT8: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """BM rows of x with BN of the matrix; the P digits of a byte belong to P products, which are added."""
    DIGITS: tl.constexpr = 8 // BITS
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    n = (tl.program_id(1) * BN + tl.arange(0, BN)).to(tl.int64)
    tiles = (N + 15) // 16
    row = n // 16 * blocks * 64 + n % 16 * 4
    total = tl.zeros([BM, BN], tl.int32 if INT8 else tl.float32)
    for first in range(0, blocks * 4, BYTES):
        byte = first + tl.arange(0, BYTES)
        block, j = byte // 4, byte % 4
        packed = tl.load(
            codes + row[None, :] + (block * 64 + j)[:, None],
            mask=(block < blocks)[:, None] & (n < tiles * 16)[None, :],
            other=0,
        )
        for p in tl.static_range(DIGITS):
            k = block * (4 * DIGITS) + 4 * p + j
            a = tl.load(x + m[:, None] * K + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0)
            digit = ((packed >> (p * BITS)) & (2**BITS - 1)).to(tl.int8)
            q = digit * (3 - BITS) - 1
            total = tl.dot(a, q.to(a.dtype), total, input_precision="ieee", out_dtype=total.dtype)
    factor = tl.load(scale + n, mask=n < N, other=0.0)[None, :]
    if INT8:
        factor = tl.load(x_scale + m, mask=m < M, other=0.0)[:, None] * factor
    result = total.to(tl.float32) * factor + tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    tl.store(y + m[:, None] * N + n[None, :], result.to(y.dtype.element_ty), mask=inside)
