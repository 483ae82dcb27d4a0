"""Fake-quantised layers: they train latent weights and compute exactly what the packed layers will.

    int8:  s_x = max(max|x|, 1e-5) / 127, x^ = clip(round_half_even(x / s_x), -127, 127),
           y = float(x^ . q) * (s_x * s_w) + b
    float: y = (x . q) * s_w + b

s_x is per token (last dimension) for Linear, per sample for convolutions. With scales in groups, x^ meets the
dequantised weight instead: y = (x^ . (q * s_w)) * s_x + b. Backward, both roundings are straight-through or
the quantizer's own estimator: the gradients are those of y = x~ . w~ + b, x~ and w~ the dequantised values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.quant.protocol import Activations, QuantizedTensor, Quantizer, int8_activations

_CONVOLUTION: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d}


class WeightQuantizer(nn.Module):
    """A quantizer with its learnable parameters for one weight, and the ramp from full precision.

    `ramp` is the share of the quantised weight in what the layer computes with: 0 full precision, 1 (the
    default) quantised. Tied weights share one of these.
    """

    def __init__(
        self, name: str, quantizer: Quantizer, weight: Tensor, activations: Activations, ramp: float = 1.0
    ) -> None:
        super().__init__()
        self.name = name
        self.quantizer = quantizer
        self.activations: Activations = activations
        self.ramp = ramp
        for key, value in quantizer.parameters(as_matrix(weight)).items():
            self.register_parameter(key, nn.Parameter(value))

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """Codes [N, K] and scale of `weight` [N, ...]."""
        return self.quantizer.quantize(as_matrix(weight), **dict(self.named_parameters()))

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor) -> Tensor:
        """The dequantised weight in its own shape, with the estimator's gradient."""
        fake = self.quantizer.fake_quantize(as_matrix(weight), quantized, **dict(self.named_parameters()))
        return fake.reshape(weight.shape)

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        return f"{self.name}, {self.quantizer.bits:.2f} bits, {self.activations} activations"


def as_matrix(weight: Tensor) -> Tensor:
    """A weight [N, ...] as the matrix [N, K] that quantizers see."""
    return weight.reshape(weight.shape[0], -1)


@dataclass(frozen=True, slots=True)
class _Geometry:
    """A convolution's attributes; None stands for a matrix product."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class _Product(torch.autograd.Function):
    """x . w in the packed arithmetic, with the gradients of x~ . w~ (see the module's docstring)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        fake: Tensor,
        quantized: QuantizedTensor,
        activations: Activations,
        geometry: _Geometry | None,
    ) -> Tensor:
        dims = (-1,) if geometry is None else tuple(range(1, x.dim()))
        given, x = x, x.float()
        s_x = None
        if activations == "int8":
            x, s_x = int8_activations(x, dims)
        ctx.save_for_backward(x, s_x, fake)
        ctx.geometry, ctx.dtype = geometry, given.dtype
        if quantized.group_size:
            y = _multiply(x, fake.float(), geometry)
            return (y if s_x is None else y * s_x).to(given.dtype)
        y = _multiply(x, quantized.codes.float().reshape(fake.shape), geometry)
        s_w = quantized.scale if geometry is None else quantized.scale.reshape(-1, *[1] * (x.dim() - 2))
        return (y * s_w if s_x is None else y * (s_x * s_w)).to(given.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, s_x, fake = ctx.saved_tensors
        gradient = gradients[0].float()
        x = x if s_x is None else x * s_x
        to_x, to_w = _multiply_backward(gradient, x, fake.float(), ctx.geometry, ctx.needs_input_grad[:2])
        return (
            None if to_x is None else to_x.to(ctx.dtype),
            None if to_w is None else to_w.to(fake.dtype),
            None,
            None,
            None,
        )


def _multiply(x: Tensor, weight: Tensor, geometry: _Geometry | None) -> Tensor:
    if geometry is None:
        return F.linear(x, weight)
    convolve = _CONVOLUTION[weight.dim() - 2]
    return convolve(x, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)


def _multiply_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry | None, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    if geometry is None:
        to_x = gradient @ weight if needed[0] else None
        rows = gradient.reshape(-1, gradient.shape[-1])
        return to_x, rows.T @ x.reshape(-1, x.shape[-1]) if needed[1] else None
    g = geometry
    to_x, to_w, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, g.stride, g.padding, g.dilation, False, [0], g.groups, [*needed, False]
    )
    return to_x, to_w


def _product(
    x: Tensor, weight: Tensor, weight_quantizer: WeightQuantizer, geometry: _Geometry | None = None
) -> Tensor:
    quantized = weight_quantizer.quantize(weight)
    fake = weight_quantizer.fake_quantize(weight, quantized)
    if weight_quantizer.ramp >= 1:
        product: Any = _Product.apply
        y: Tensor = product(x, fake, quantized, weight_quantizer.activations, geometry)
        return y
    if weight_quantizer.activations == "int8":
        codes, s_x = int8_activations(x, (-1,) if geometry is None else tuple(range(1, x.dim())))
        x = x + (codes * s_x - x).detach()
    return _multiply(x, torch.lerp(weight, fake, weight_quantizer.ramp), geometry)


class QATLinear(nn.Linear):
    """A fake-quantised Linear; x [..., K] -> [..., N]."""

    weight_quantizer: WeightQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """The packed layer's output, with gradients to input, latent weight and quantizer parameters."""
        y = _product(input, self.weight, self.weight_quantizer)
        return y if self.bias is None else y + self.bias


class QATConv1d(nn.Conv1d):
    """A fake-quantised Conv1d; x [batch, channels, length]."""

    weight_quantizer: WeightQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """The packed layer's output, with gradients to input, latent weight and quantizer parameters."""
        return _convolution(self, input)


class QATConv2d(nn.Conv2d):
    """A fake-quantised Conv2d; x [batch, channels, height, width]."""

    weight_quantizer: WeightQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """The packed layer's output, with gradients to input, latent weight and quantizer parameters."""
        return _convolution(self, input)


def _convolution(layer: QATConv1d | QATConv2d, x: Tensor) -> Tensor:
    dims = layer.weight.dim() - 2
    if x.dim() != dims + 2:
        raise UsageError(
            f"a quantised convolution takes {dims + 2} dimensions (batch first), not {list(x.shape)}"
        )
    if isinstance(layer.padding, str):
        # 'same' with an even kernel pads the end more; explicit padding covers every case
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        ends = [0] * (2 * dims) if layer.padding == "valid" else _both_ends(reach)
        x, padding = F.pad(x, ends), (0,) * dims
    else:
        padding = tuple(layer.padding)
    geometry = _Geometry(tuple(layer.stride), padding, tuple(layer.dilation), layer.groups)
    y = _product(x, layer.weight, layer.weight_quantizer, geometry)
    return y if layer.bias is None else y + layer.bias.reshape(-1, *[1] * dims)


def _both_ends(reach: list[int]) -> list[int]:
    """`F.pad`'s list for padding 'same': last dimension first, the odd one at the end."""
    return [n for total in reversed(reach) for n in (total // 2, total - total // 2)]


class QATEmbedding(nn.Embedding):
    """A fake-quantised Embedding; a row is codes times scale."""

    weight_quantizer: WeightQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """The dequantised rows, with gradients to the latent weight and quantizer parameters."""
        table = self.weight_quantizer
        fake = table.fake_quantize(self.weight, table.quantize(self.weight))
        if table.ramp < 1:
            fake = torch.lerp(self.weight, fake, table.ramp)
        return F.embedding(input, fake, self.padding_idx)


QATLayer = QATLinear | QATConv1d | QATConv2d | QATEmbedding


def qat_layers(model: nn.Module) -> dict[str, QATLayer]:
    """The fake-quantised layers of a model by module name, a layer with two names under its first."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QATLayer)}


def weight_quantizers(model: nn.Module) -> Iterator[WeightQuantizer]:
    """Every weight quantizer of a model, each once."""
    return (module for module in model.modules() if isinstance(module, WeightQuantizer))


def set_ramp(model: nn.Module, value: float) -> None:
    """Set the share of the quantised weight in every layer: 0 full precision, 1 quantised."""
    for weight_quantizer in weight_quantizers(model):
        weight_quantizer.ramp = float(value)
