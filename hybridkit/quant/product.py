"""The arithmetic of a quantised layer, and the gradient through it.

For one row x of activations, codes q[n, :], scales s_w[n]:

    int8:  x^, s_x = int8_activations(x);  y = float(x^ . q[n]) * (s_x * s_w[n])
    float: y = (x . q[n]) * s_w[n]

x^ and q are integer-valued floats, so that x^ . q is exact while 127 * max|q| * K < 2^24 (K < 132,000 for
ternary and binary codes), and every kernel and exported file gives the same bits. Where the scale changes
along the row (groups) it cannot stand on the output. Under int8 the groups g of a matrix product are then
added up one after the other, each step in float32, again with the same bits everywhere:

    int8:  y = 0 + p_0 + p_1 + ...,  p_g = float(x^_g . q_g[n]) * (s_x * s_w[n, g])

Elsewhere, and where there is an offset, the weight w is the dequantised one,
q[n, k] * s_w[n, group of k] + o[n, group of k]:

    int8:  y = (x^ . w[n]) * s_x;   float: y = x . w[n]      both to fp32 rounding

The gradient is that of y = x~ . w~, with x~ = x^ s_x and w~ the quantizer's fake-quantised weight: straight
through the rounding of x, the quantizer's own estimator for w.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hybridkit.quant.protocol import QuantizedTensor, int8_activations

SMALLEST: Final = 16  # dimension that is worth an int8 product; torch's gets some vectors wrong


class Bilinear(Protocol):
    """A product of activations and a weight, linear in each.

    `reduced`: the dimensions of x that share an activation scale. `trailing`: how many dimensions of the
    output come after the channel.
    """

    @property
    def reduced(self) -> tuple[int, ...]:
        """See above."""
        ...

    @property
    def trailing(self) -> int:
        """See above."""
        ...

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product; `weight` in its own shape."""
        ...

    def multiply_int8(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """The product of int8 tensors, int32; None where there is nothing faster than floats."""
        ...

    def gradients(
        self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients to x and to the weight, None where not needed."""
        ...


@dataclass(frozen=True, slots=True)
class MatMul:
    """x [..., K] by weight [N, K] gives [..., N]; one activation scale per row."""

    reduced: tuple[int, ...] = (-1,)
    trailing: int = 0

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """x @ weight^T."""
        return F.linear(x, weight)

    def multiply_int8(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """x @ weight^T, on processors with VNNI; others saturate between the steps of their int8 products."""
        if x.device.type != "cpu" or not _has_vnni():
            return None
        rows = x.reshape(-1, x.shape[-1])
        if min(*rows.shape, *weight.shape) < SMALLEST:
            return None
        return torch._int_mm(rows, weight.T).view(*x.shape[:-1], -1)

    def gradients(
        self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """grad @ weight, and grad^T @ x over all rows."""
        by_x = grad @ weight if need_x else None
        rows = grad.reshape(-1, weight.shape[0])
        by_weight = rows.T @ x.reshape(-1, weight.shape[1]) if need_weight else None
        return by_x, by_weight


@dataclass(frozen=True, slots=True)
class Convolution:
    """x [B, C, *space] by weight [N, C/groups, *kernel] gives [B, N, *space].

    One activation scale per sample.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def reduced(self) -> tuple[int, ...]:
        """Every dimension but the batch."""
        return tuple(range(1, 2 + self.trailing))

    @property
    def trailing(self) -> int:
        """Spatial dimensions."""
        return len(self.stride)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution, without bias."""
        convolve = F.conv1d if self.trailing == 1 else F.conv2d
        return convolve(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def multiply_int8(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """torch has none."""
        return None

    def gradients(
        self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Both from torch's own backward of a convolution."""
        zeros = [0] * self.trailing
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            zeros,
            self.groups,
            [need_x, need_weight, False],
        )
        return by_x, by_weight


@functools.cache
def _has_vnni() -> bool:
    return bool(torch.cpu._is_vnni_supported())


def quantized_product(
    op: Bilinear,
    x: Tensor,
    fake_weight: Tensor,
    quantized: QuantizedTensor,
    int8: bool,
    gradients: torch.dtype | None = None,
) -> Tensor:
    """The product of x with a quantised weight, as the module says; no bias.

    `fake_weight` [N, K...] only carries the gradient. x is float32, or for float activations of a smaller
    type, in which x . q is then multiplied; scales stay float32, and so does what comes out. For
    the backward codes are kept as int8, those of the activations too. `gradients` is the type in which the
    backward's products are multiplied, None for that of the forward's.
    """
    codes = quantized.codes if quantized.on_output else quantized.dequantize()
    in_order = int8 and isinstance(op, MatMul) and quantized.group_size > 0 and quantized.offset is None
    groups = quantized if in_order else None
    scale = quantized.scale.reshape(-1, *[1] * op.trailing) if quantized.on_output else None
    result: Tensor = _QuantizedProduct.apply(  # type: ignore[no-untyped-call]
        x, fake_weight, op, codes.view(fake_weight.shape), scale, int8, gradients, groups
    )
    return result


def sum_of_groups(activations: Tensor, x_scale: Tensor, quantized: QuantizedTensor) -> Tensor:
    """The product of int8 activations [..., K], integer-valued, with groups [N, K], as the module says."""
    codes, size = quantized.codes.to(activations.dtype), quantized.group_size
    y = x_scale.new_zeros((*activations.shape[:-1], len(codes)))
    for group in range(quantized.scale.shape[1]):
        of = slice(group * size, (group + 1) * size)
        y = y + F.linear(activations[..., of], codes[:, of]).float() * (x_scale * quantized.scale[:, group])
    return y


def blended_product(op: Bilinear, x: Tensor, weight: Tensor, int8: bool, ramp: float) -> Tensor:
    """Between full precision (ramp 0) and quantised (ramp 1): `weight` is there, activations are mixed."""
    if int8:
        codes, scale = int8_activations(x, op.reduced)
        x = x + ramp * (codes * scale - x).detach()
    return op.multiply(x, weight.to(x.dtype)).float()


class _QuantizedProduct(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        fake_weight: Tensor,
        op: Bilinear,
        weight: Tensor,
        scale: Tensor | None,
        int8: bool,
        gradients: torch.dtype | None,
        groups: QuantizedTensor | None,
    ) -> Tensor:
        activations, x_scale = int8_activations(x, op.reduced) if int8 else (x, None)
        exact = None
        if x_scale is not None:
            codes = activations.to(torch.int8)
            if scale is not None:  # whole numbers on both sides
                exact = op.multiply_int8(codes, weight)
        ctx.op, ctx.dtype, ctx.input_dtype = op, gradients or activations.dtype, x.dtype
        ctx.save_for_backward(activations if x_scale is None else codes, x_scale, weight, scale)
        if groups is not None and x_scale is not None:
            return sum_of_groups(activations, x_scale, groups)
        y = op.multiply(activations, weight.to(activations.dtype)) if exact is None else exact
        y = y.float()
        if x_scale is not None and scale is not None:
            return y.mul_(x_scale * scale)
        factor = x_scale if scale is None else scale
        return y if factor is None else y.mul_(factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        activations, x_scale, weight, scale = ctx.saved_tensors
        activations, weight = activations.to(ctx.dtype), weight.to(ctx.dtype)
        need_x, need_weight = ctx.needs_input_grad[:2]
        to_x = to_weight = None
        if need_x:
            scaled = grad if scale is None else grad * scale
            to_x, _ = ctx.op.gradients(scaled.to(ctx.dtype), activations, weight, True, False)
            to_x = to_x.to(ctx.input_dtype)
        if need_weight:
            scaled = grad if x_scale is None else grad * x_scale
            _, to_weight = ctx.op.gradients(scaled.to(ctx.dtype), activations, weight, False, True)
            to_weight = to_weight.float()
        return to_x, to_weight, None, None, None, None, None, None
