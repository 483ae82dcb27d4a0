"""The quantizer protocol: from a latent weight to integer codes and scales, and a gradient back.

Importing it needs no torch: quantizers that say so compute with NumPy arrays too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from array_api_compat import array_namespace

if TYPE_CHECKING:
    from torch import Tensor

    from hybridkit.packing.codecs import Codec

Granularity = Literal["channel", "tensor"]


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A quantised weight matrix: weight[n, k] stands as scale[n, k // group] * codes[n, k] + offset[same].

    codes: int8 [N, K], values from the quantizer's `levels`; as scale, an array of the weight's own library.
    scale: float32 [N], or [N, ceil(K / group_size)] where the quantizer works in groups; with a
        minus where levels reach further on one side than on the other and that side is the other one.
    offset: None, or float32 like scale: the weight that code 0 stands for (a zero point is -offset / scale).
    """

    codes: Tensor
    scale: Tensor
    group_size: int = 0  # 0: one scale per row
    offset: Tensor | None = None

    def dequantize(self) -> Tensor:
        """The represented weight, float32 [N, K]."""
        xp = array_namespace(self.codes)
        codes: Tensor = xp.astype(self.codes, xp.float32, copy=False)
        weight = codes * self.per_weight(self.scale)
        return weight if self.offset is None else weight + self.per_weight(self.offset)

    def per_weight(self, values: Tensor) -> Tensor:
        """Numbers of rows or groups, shaped like scale, as [N, 1] or [N, K]."""
        if self.group_size == 0:
            return values[:, None]
        repeated: Tensor = array_namespace(values).repeat(values, self.group_size, axis=1)
        return repeated[:, : self.codes.shape[1]]

    @property
    def on_output(self) -> bool:
        """Whether the scale can stand on a product's output: one per row, and no offset."""
        return self.group_size == 0 and self.offset is None

    def with_numbers(self, change: Callable[[Tensor], Tensor]) -> QuantizedTensor:
        """The same codes with what `change` makes of scale and offset."""
        offset = None if self.offset is None else change(self.offset)
        return replace(self, scale=change(self.scale), offset=offset)


class Quantizer(Protocol):
    """Quantises a weight seen as a matrix [N, K]: N output channels, K weights each.

    Convolution weights [N, C/g, kh, kw] come flattened to [N, C/g*kh*kw], embeddings as [entries, width].
    `levels` is the code book in ascending order; `bits` = log2(len(levels)). Codes with a pattern (of every
    four one is 0) may say so: `codec` then names the packing codec that stores them, `bits` is what it takes.
    """

    levels: tuple[int, ...]
    bits: float

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """Initial values of the learnable parameters for this weight, by name; empty if there are none."""
        ...

    def quantize(self, weight: Tensor, **parameters: Tensor) -> QuantizedTensor:
        """Codes and scale of `weight` (float [N, K]). Deterministic; no gradient."""
        ...

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor, **parameters: Tensor) -> Tensor:
        """`quantized.dequantize()`, with the estimator's gradient to `weight` and `parameters`."""
        ...


@dataclass(frozen=True, slots=True)
class Statistics:
    """What calibration data say about the inputs of a weight [N, K].

    gram: float32 [K, K], the mean of x x^T over what met a row of the weight: tokens, or the patches of
    images (of all groups of a convolution together). count: how many x that were.
    """

    gram: Tensor
    count: int


def takes_statistics(quantizer: object) -> bool:
    """Whether its class says `takes_statistics = True`: its `quantize` then has a `statistics` argument.

    Such a quantizer looks at calibration data, or moves the error of a column to others. It gets the
    `Statistics` of the layer, or None where there are no example inputs, only when quantising after training.
    """
    return bool(getattr(quantizer, "takes_statistics", False))


def quantize_weight(quantizer: Quantizer, weight: Tensor, statistics: Statistics | None) -> QuantizedTensor:
    """Codes and scale of a weight [N, K] after training, with `statistics` where the quantizer takes them."""
    given: dict[str, Any] = {"statistics": statistics} if takes_statistics(quantizer) else {}
    return quantizer.quantize(weight, **quantizer.parameters(weight), **given)


def straight_through(weight: Tensor, quantized: QuantizedTensor) -> Tensor:
    """The dequantised weight, exactly, with the identity as gradient (Bengio et al., arXiv 1308.3432)."""
    from hybridkit.quant.substitute import substitute

    return substitute(weight, quantized.dequantize())


@dataclass(frozen=True, slots=True)
class Relaxed:
    """What stands for a weight on the ramp.

    weight: float32 [N, K]. bias: None, or float32 [N, K], whose rows are summed onto the outputs.
    """

    weight: Tensor
    bias: Tensor | None = None


def anneals(quantizer: object) -> bool:
    """Whether it has a method `anneal(weight, quantized, progress, **parameters)` that gives a `Relaxed`.

    Such a quantizer has a way of its own from full precision (progress 0, the weight itself) to its codes
    (progress 1, which it is never asked for). Gradients flow as through `fake_quantize`.
    """
    return hasattr(quantizer, "anneal")


def relaxed(
    quantizer: Quantizer, weight: Tensor, quantized: QuantizedTensor, progress: float, **parameters: Tensor
) -> Relaxed:
    """`weight` [N, K] on the ramp, 0 <= progress < 1: mixed linearly, or as the quantizer has it."""
    own: Any = quantizer
    if anneals(quantizer):
        found: Relaxed = own.anneal(weight, quantized, progress, **parameters)
        return found
    import torch

    return Relaxed(torch.lerp(weight, quantizer.fake_quantize(weight, quantized, **parameters), progress))


def takes_numpy(quantizer: object) -> bool:
    """Whether its class says `takes_numpy = True`: all but its `fake_quantize` then take NumPy arrays too.

    Where torch is not installed, such quantizers alone can quantise an ONNX file.
    """
    return bool(getattr(quantizer, "takes_numpy", False))


def codec_of(quantizer: Quantizer) -> Codec:
    """What stores its codes: the codec that it names as `codec`, as one whose codes have a pattern does, else
    the default for its levels. Raises UsageError where there is none.
    """
    from hybridkit.packing.codecs import codec, codec_for

    own = getattr(quantizer, "codec", None)
    return codec(own) if own else codec_for(quantizer.levels)


def has_pattern(quantizer: Quantizer) -> bool:
    """Whether its codes have a pattern, so that not every change of one leaves codes of this quantizer."""
    return getattr(quantizer, "codec", None) is not None


def is_ternary(quantizer: Quantizer) -> bool:
    """Whether the code book is {-1, 0, +1}."""
    return quantizer.levels == (-1, 0, 1)


def int8_activations(x: Tensor, dim: int | tuple[int, ...] = -1) -> tuple[Tensor, Tensor]:
    """Symmetric int8 activation codes and their scale, over `dim` (kept as size 1).

    s_x = max(max|x|, 1e-5) / 127; codes = clip(round_half_even(x / s_x), -127, 127). Codes come as
    integer-valued floats of x's dtype. This is the arithmetic that every kernel and file repeats exactly.
    """
    largest = x.detach().abs().amax(dim=dim, keepdim=True).clamp(min=1e-5)
    import torch

    # a tensor, because torch on CUDA multiplies by the reciprocal of a number, which moves the last bit
    scale = largest / largest.new_full((), 127)
    return torch.clamp(torch.round(x.detach() / scale), -127, 127), scale
