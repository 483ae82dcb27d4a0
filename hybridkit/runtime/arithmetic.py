"""The arithmetic of the packed operators in plain torch: the reference of every kernel.

    int8:  s_x = max(max|x|, 1e-5) / 127, x^ = clip(round_half_even(x / s_x), -127, 127),
           y = float(x^ . q) * (s_x * s_w) + b
    float: y = (x . q) * s_w + b

s_x is per row of x for a matmul, per sample for a convolution. With groups (n-bit, group_size > 0) the scale
is [N, ceil(K / group_size)], and an int8 matmul adds up its groups one after the other, each step in float32:

    y = 0 + p_0 + p_1 + ... + b,  p_g = float(x^_g . q_g) * (s_x * s_wg)

With an offset o (n-bit), of the shape of the scale, and in convolutions with groups, x^ meets the dequantised
weight, and y = (x^ . (q * s_w + o)) * s_x + b.

Arithmetic is in float32; the result has the type of x. A row (sample) that holds a NaN or an infinity gives
NaN in all of its int8 outputs: s_x is NaN, or an infinity that meets a zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridkit.errors import UsageError
from hybridkit.packing.activations import Activations
from hybridkit.packing.tiles import TILE_COLUMNS, TILE_ROWS, tiled_shape
from hybridkit.quant.product import sum_of_groups
from hybridkit.quant.protocol import QuantizedTensor, int8_activations
from hybridkit.runtime.native import LowBit

Codes = LowBit | Literal["nbit"]

_CONVOLUTION: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d}


@dataclass(frozen=True, slots=True)
class Geometry:
    """The attributes of a convolution, as ONNX names them; `pads`: all begins, then all ends."""

    kernel_shape: Sequence[int]
    strides: Sequence[int]
    pads: Sequence[int]
    dilations: Sequence[int]
    group: int

    @property
    def dims(self) -> int:
        """1 or 2 spatial dimensions."""
        return len(self.kernel_shape)

    @property
    def positions(self) -> int:
        """The positions of the kernel."""
        return math.prod(self.kernel_shape)


class Numbers(NamedTuple):
    """What stands beside integer codes: scale [N] or [N, groups], and an offset of its shape or None."""

    scale: Tensor
    offset: Tensor | None = None
    group_size: int = 0


class PackedMatrix(NamedTuple):
    """A ternary or binary matrix [N, K] as an operator gets it, with scale [N] and bias [N].

    layout: 0 row-major (the codecs `two-bit` and `one-bit`), 1 tiles, 2 tiles of a convolution.
    """

    kind: LowBit
    activations: Activations
    codes: Tensor
    scale: Tensor
    bias: Tensor
    K: int
    N: int
    layout: int

    def unpack(self, group: int = 1, positions: int = 1) -> Tensor:
        """Integer-valued float32 [N, K] with layout 0's columns; `positions` of a convolution's kernel."""
        if self.layout == 0:
            return unpack(self.codes, self.K, self.kind)
        return unpack_tiles(self.codes, self.N, self.K, self.kind, group, positions)

    def tiles(self, group: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, which are tiles, scale and bias, contiguous: for kernels that read them by their address.

        Raises UsageError for wrong types or sizes.
        """
        shape = tiled_shape(self.N, self.K, 1 if self.kind == "binary" else 2, group)
        if self.codes.numel() != math.prod(shape) or self.codes.dtype != torch.uint8:
            found = f"{self.codes.dtype} {list(self.codes.shape)}"
            raise UsageError(
                f"{found} is not the {self.kind} codes of a matrix [{self.N}, {self.K}] in tiles"
            )
        if self.scale.numel() != self.N or self.bias.numel() != self.N:
            found = f"scale {list(self.scale.shape)} and bias {list(self.bias.shape)}"
            raise UsageError(f"{found} must both be [{self.N}]")
        return self.codes.contiguous(), self.scale.float().contiguous(), self.bias.float().contiguous()


def unpack(codes: Tensor, K: int, kind: Codes, bits: int = 2) -> Tensor:
    """Packed codes uint8 [..., B] -> integer-valued float32 [..., K]."""
    bits = 1 if kind == "binary" else bits
    fields = codes if bits == 8 else _fields(codes, bits).flatten(-2)
    return _values(fields[..., :K], kind, bits)


def unpack_tiles(codes: Tensor, N: int, K: int, kind: Codes, group: int = 1, positions: int = 1) -> Tensor:
    """Tiles of packing/tiles.py, of any shape -> integer-valued float32 [N, K], columns as in layout 0."""
    bits, rows = 1 if kind == "binary" else 2, N // group
    tiles = group * -(-rows // TILE_ROWS)
    fields = _fields(codes.reshape(tiles, -1, TILE_ROWS, TILE_COLUMNS), bits)  # [t, b, r, j, p]
    padded = fields.permute(0, 2, 1, 4, 3).reshape(group, -(-rows // TILE_ROWS) * TILE_ROWS, -1)
    matrix = padded[:, :rows, :K].reshape(N, positions, K // positions).transpose(1, 2).reshape(N, K)
    return _values(matrix, kind, bits)


def take_tiled(codes: Tensor, indices: Tensor, K: int, kind: Codes) -> Tensor:
    """The rows at `indices`, not negative, of a matrix in tiles -> integer-valued float32 [..., K]."""
    bits = 1 if kind == "binary" else 2
    rows = codes[indices // TILE_ROWS, :, indices % TILE_ROWS]  # [..., b, j]
    return _values(_fields(rows, bits).transpose(-1, -2).flatten(-3)[..., :K], kind, bits)


def _fields(codes: Tensor, bits: int) -> Tensor:
    """uint8 [...] -> its digits [..., 8 / bits], lowest bits first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (codes.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)


def _values(digits: Tensor, kind: Codes, bits: int) -> Tensor:
    values = digits.float()
    if bits == 1:
        return values * 2 - 1
    return values - (1 if kind == "ternary" else 1 << bits - 1)


def take(rows: Tensor, indices: Tensor) -> Tensor:
    """The rows [n, ...] at `indices`; unlike indexing, refuses negative ones."""
    return rows.index_select(0, indices.reshape(-1)).reshape(*indices.shape, *rows.shape[1:])


def scaled(weight: Tensor, numbers: Numbers) -> Tensor:
    """Dequantised rows [..., K]; scale and offset are [...] or [..., groups]."""

    def per_weight(values: Tensor) -> Tensor:
        if numbers.group_size == 0:
            return values.unsqueeze(-1)
        return values.repeat_interleave(numbers.group_size, dim=-1)[..., : weight.shape[-1]]

    weight = weight * per_weight(numbers.scale)
    return weight if numbers.offset is None else weight + per_weight(numbers.offset)


def _product(
    x: Tensor,
    weight: Tensor,
    numbers: Numbers,
    bias: Tensor,
    activations: Activations,
    multiply: Callable[[Tensor, Tensor], Tensor],
    channel: Callable[[Tensor], Tensor],
    reduce: tuple[int, ...],
) -> Tensor:
    """The arithmetic above around `multiply`; `channel` lines a vector [N] up with the output's channels."""
    given, x = x, x.float()
    on_output = numbers.group_size == 0 and numbers.offset is None
    weight = weight if on_output else scaled(weight, numbers)
    if activations == "int8":
        x, s_x = int8_activations(x, dim=reduce)
        y = multiply(x, weight) * (s_x * channel(numbers.scale) if on_output else s_x)
    else:
        y = multiply(x, weight)
        y = y * channel(numbers.scale) if on_output else y
    return (y + channel(bias)).to(given.dtype)


def matmul(x: Tensor, weight: Tensor, numbers: Numbers, bias: Tensor, activations: Activations) -> Tensor:
    """x [..., K] with an integer-valued weight [N, K] -> [..., N]."""
    check_matmul_input(x, weight.shape[1])
    if activations == "int8" and numbers.group_size and numbers.offset is None:
        return _sum_of_groups(x, weight, numbers, bias)
    return _product(x, weight, numbers, bias, activations, F.linear, lambda v: v, (-1,))


def _sum_of_groups(x: Tensor, weight: Tensor, numbers: Numbers, bias: Tensor) -> Tensor:
    rounded, s_x = int8_activations(x.float(), dim=(-1,))
    y = sum_of_groups(rounded, s_x, QuantizedTensor(weight, numbers.scale, numbers.group_size))
    return (y + bias).to(x.dtype)


def conv(
    x: Tensor, weight: Tensor, numbers: Numbers, bias: Tensor, activations: Activations, geometry: Geometry
) -> Tensor:
    """x [batch, channels, *space] with an integer-valued weight [N, K] -> [batch, N, *space]."""
    dims = geometry.dims
    check_conv_input(x, dims)
    begins, ends = geometry.pads[:dims], geometry.pads[dims:]
    padding = begins
    if begins != ends:
        x = F.pad(x, [n for pair in zip(begins[::-1], ends[::-1], strict=True) for n in pair])
        padding = [0] * dims

    def multiply(a: Tensor, w: Tensor) -> Tensor:
        kernels = w.reshape(w.shape[0], -1, *geometry.kernel_shape)
        g = geometry
        return _CONVOLUTION[dims](a, kernels, None, g.strides, padding, g.dilations, g.group)

    def channel(v: Tensor) -> Tensor:
        return v.reshape(-1, *[1] * dims)

    reduce = tuple(range(1, dims + 2))
    return _product(x, weight, numbers, bias, activations, multiply, channel, reduce)


def matmul_shape(x: Tensor, K: int, N: int) -> Tensor:
    """What `matmul` returns, without content."""
    check_matmul_input(x, K)
    return x.new_empty((*x.shape[:-1], N))


def conv_shape(x: Tensor, N: int, geometry: Geometry) -> Tensor:
    """What `conv` returns, without content."""
    g, dims = geometry, geometry.dims
    check_conv_input(x, dims)
    sizes = [
        (x.shape[2 + i] + g.pads[i] + g.pads[dims + i] - g.dilations[i] * (g.kernel_shape[i] - 1) - 1)
        // g.strides[i]
        + 1
        for i in range(dims)
    ]
    return x.new_empty((x.shape[0], N, *sizes))


def check_matmul_input(x: Tensor, K: int) -> None:
    """Raise UsageError unless x is [..., K]."""
    if x.dim() == 0 or x.shape[-1] != K:
        raise UsageError(f"the layer takes {K} features in the last dimension, not {list(x.shape)}")


def check_conv_input(x: Tensor, dims: int) -> None:
    """Raise UsageError unless x has a batch, channels and `dims` dimensions of space."""
    if x.dim() != dims + 2:
        raise UsageError(
            f"the layer takes {dims + 2} dimensions (batch, channels, space), not {list(x.shape)}"
        )
