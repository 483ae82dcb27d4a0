"""Ternary quantizers that come to their hard codes over the ramp of a run, each by a way of its own.

`progress` is the place on the ramp (`set_ramp`), 0 at full precision and 1 at the end, where both are
TernaryAbsmean to the bit: nothing of the way is left to be packed. In the first `blend` of the ramp the full
precision weight is mixed out; in the rest the relaxation hardens by half a cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Lt

from hybridkit.options import option
from hybridkit.quant.protocol import QuantizedTensor, Relaxed
from hybridkit.quant.scales import TINY
from hybridkit.quant.ternary import TernaryAbsmean

if TYPE_CHECKING:
    from torch import Tensor

COLDEST = 1e-6  # temperatures below it make the same codes and would divide by zero


class _Annealed(TernaryAbsmean):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(TernaryAbsmean.Options):
        """What can be set."""

        blend: Annotated[float, Gt(0), Lt(1)] = option(
            0.2, "share of the ramp in which the full-precision weight is mixed out"
        )

    def _place(self, progress: float) -> tuple[float, float]:
        """How much of the relaxed weight is in the mixture, 0 to 1, and how soft it is, 1 to 0."""
        blend: float = self.options.blend
        rest = max(0.0, (progress - blend) / (1 - blend))
        return min(progress / blend, 1.0), (1 + math.cos(math.pi * rest)) / 2


class TernarySoftmax(_Annealed):
    """The mean of the codes under a softmax that cools down (Hestia, arXiv 2601.20745).

    With u = w / scale and temperature t the weight is scale * sum_q q p_q, where p_q is the softmax over
    q in {-1, 0, 1} of -(u - q)^2 / t; that is scale * sinh(2u/t) / (cosh(2u/t) + exp(1/t) / 2). Its gradient
    is its own: (2/t) (sum_q q^2 p_q - (sum_q q p_q)^2); the scale, mean|w|, counts as a constant. At t = 0,
    the end of the ramp, codes are rounded and the gradient is straight through.

    0.35 is the temperature at which normal weights are changed least. The paper also lets each tensor cool
    at a pace that the trace of its Hessian sets; that is left out: all layers cool alike.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(_Annealed.Options):
        """What can be set."""

        temperature: Annotated[float, Gt(0)] = option(0.35, "temperature until it falls, in squared scales")

    def anneal(self, weight: Tensor, quantized: QuantizedTensor, progress: float) -> Relaxed:
        """The relaxed weight at `progress`; see the class."""
        import torch

        share, softness = self._place(progress)
        mean, slope = soft_ternary(
            weight.detach(), quantized.scale[:, None], max(self.options.temperature * softness, COLDEST)
        )
        soft = mean + slope * (weight - weight.detach())  # the second term is zero and carries the gradient
        return Relaxed(torch.lerp(weight, soft, share))


def soft_ternary(weight: Tensor, scale: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The mean of the scaled codes [N, K] under the softmax, and its derivative by the weight.

    Exponents are taken against the largest, so that no temperature overflows.
    """
    import torch

    ratio = (weight / scale.clamp(min=TINY)).abs()
    near, far = (2 * ratio - 1) / temperature, (-2 * ratio - 1) / temperature  # logits over that of code 0
    top = near.clamp(min=0)
    zero, near, far = (-top).exp(), (near - top).exp(), (far - top).exp()
    total = zero + near + far
    mean = (near - far) / total
    slope = 2 / temperature * ((near + far) / total - mean.square())
    return scale * torch.copysign(mean, weight), slope


class TernaryDeadzone(_Annealed):
    """Weights that are rounded to zero act as a bias meanwhile (Tequila, arXiv 2509.23809).

    y = x . (scale q) + strength * sum of the w_k with q_k = 0, so that these weights have, beside the
    straight-through gradient of their input, the gradient of the output itself, and do not stay where they
    are for want of one. The paper keeps the bias and adds it up when the network is packed; here its strength
    falls to 0 along the ramp, so that the network ends as a plain ternary one. An embedding has no bias.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(_Annealed.Options):
        """What can be set."""

        strength: Annotated[float, Gt(0)] = option(1e-3, "of the bias, until it falls")

    def anneal(self, weight: Tensor, quantized: QuantizedTensor, progress: float) -> Relaxed:
        """The relaxed weight and its bias at `progress`; see the class."""
        import torch

        share, softness = self._place(progress)
        hard = self.fake_quantize(weight, quantized)
        dead = weight * (quantized.codes == 0)
        return Relaxed(torch.lerp(weight, hard, share), share * softness * self.options.strength * dead)
