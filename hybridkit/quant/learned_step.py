"""The gradients of `TernaryLearned`, by hand: autograd would keep many matrices and pass over them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hybridkit.quant.protocol import QuantizedTensor


class LearnedStep(Function):
    """The dequantised weight, float32 [N, K], of a latent weight and its step, [N] or [1].

    With r = w / s: to w its gradient g where |r| <= 1.5, to s the sum of g (code - r) where |r| <= 1 and of
    g code beyond, times sqrt(number of steps / number of weights).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, quantized: QuantizedTensor) -> Tensor:
        """Dequantise."""
        ctx.save_for_backward(weight, quantized.codes, quantized.scale)
        ctx.steps = step.shape
        return quantized.dequantize()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients to weight and step."""
        weight, codes, scale = ctx.saved_tensors
        ratio = weight / scale[:, None]
        magnitude = ratio.abs()
        to_weight = grad * (magnitude <= 1.5) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_weight, None, None
        slope = ratio.mul_(magnitude <= 1).neg_().add_(codes)
        factor = math.sqrt(ctx.steps.numel() / max(weight.numel(), 1))
        by_row = slope.mul_(grad).sum(dim=1) * factor
        to_step = by_row if by_row.shape == ctx.steps else by_row.sum().reshape(ctx.steps)
        return to_weight, to_step, None
