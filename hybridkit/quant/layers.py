"""Fake-quantised layers: they train a latent weight and compute, bit for bit, what the packed model will.

A layer is made from an existing one in place, by changing its class (as torch's own parametrisations do):
every reference to it, its hooks, its Parameter objects and so every tied weight stay what they are. `weight`
and `bias` keep their names in the state dictionary; a quantizer's learnable parameters are added under
`quantizer_parameters`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hybridkit.errors import UsageError
from hybridkit.packing.activations import Activations
from hybridkit.packing.layers import LayerKind
from hybridkit.quant.config import Compute
from hybridkit.quant.frozen_codes import FrozenCodes, follow_gain
from hybridkit.quant.kinds import is_scaled, is_transposed, kind_of
from hybridkit.quant.product import Bilinear, Convolution, MatMul, blended_product, quantized_product
from hybridkit.quant.protocol import QuantizedTensor, Quantizer, Relaxed, relaxed
from hybridkit.quant.straight import is_straight_through


class QATLayer(nn.Module):
    """What fake-quantised layers share.

    `ramp` goes from 0 (full precision) to 1 (quantised, the default, where the arithmetic is exact).
    """

    float_class: ClassVar[type[nn.Module]]
    kind: ClassVar[LayerKind]
    transposed: ClassVar[bool] = False
    weight: Tensor
    quantizer: Quantizer
    quantizer_name: str
    quantizer_parameters: nn.ParameterDict
    activations: Activations
    compute: Compute
    ramp: float

    @classmethod
    def adopt(
        cls,
        layer: nn.Module,
        quantizer: Quantizer,
        *,
        activations: Activations = "int8",
        compute: Compute = "fp32",
        name: str = "",
        parameters: nn.ParameterDict | None = None,
    ) -> Self:
        """Turn `layer`, which is exactly a `float_class` (see `qat_class`), into this one, in place.

        `name` is the quantizer's name, for the record. `parameters` are learnable parameters to share with
        another layer of the same weight; None makes new ones from the weight.
        """
        if type(layer) is not cls.float_class:
            raise UsageError(
                f"{cls.__name__} is made from {cls.float_class.__name__}, not {type(layer).__name__}"
            )
        layer.__class__ = cls
        adopted = cast(Self, layer)
        adopted.quantizer = quantizer
        adopted.quantizer_name = name or type(quantizer).__name__
        adopted.activations = activations
        adopted.compute = compute
        adopted.ramp = 1.0
        if parameters is None:
            initial = quantizer.parameters(adopted.weight_matrix().detach())
            parameters = nn.ParameterDict({key: nn.Parameter(value) for key, value in initial.items()})
        adopted.quantizer_parameters = parameters
        return adopted

    def release(self) -> nn.Module:
        """Turn this back, in place, into the full-precision layer it was; the latent weight stays."""
        if isinstance(self.quantizer, FrozenCodes):
            weight = self.quantized_weight().dequantize().view(self.oriented_weight().shape)
            weight = weight.to(self.weight_dtype)
            self.weight = nn.Parameter(weight.t().contiguous() if self.transposed else weight)
        for attribute in (
            "quantizer",
            "quantizer_name",
            "quantizer_parameters",
            "activations",
            "compute",
            "ramp",
        ):
            delattr(self, attribute)
        self.__class__ = self.float_class  # type: ignore[assignment]
        return self

    def oriented_weight(self) -> Tensor:
        """The latent weight with the outputs first, [N, K...]."""
        return self.weight

    @property
    def weight_dtype(self) -> torch.dtype:
        """The type of the latent weight, or of the one whose codes were frozen."""
        return self.quantizer.dtype if isinstance(self.quantizer, FrozenCodes) else self.weight.dtype

    def weight_matrix(self) -> Tensor:
        """The latent weight as float32 [N, K]; frozen codes as they are, int8."""
        matrix = self.oriented_weight().flatten(1)
        return matrix.float() if matrix.is_floating_point() else matrix

    @torch.no_grad()
    def quantized_weight(self) -> QuantizedTensor:
        """The codes and scales that the forward uses and that are packed."""
        return self.quantizer.quantize(self.weight_matrix(), **dict(self.quantizer_parameters.items()))

    def fake_weight(self, quantized: QuantizedTensor) -> Tensor:
        """The fake-quantised weight [N, K...], with the estimator's gradient."""
        shape = self.oriented_weight().shape
        if not torch.is_grad_enabled():
            return quantized.dequantize().view(shape)
        parameters = dict(self.quantizer_parameters.items())
        return self.quantizer.fake_quantize(self.weight_matrix(), quantized, **parameters).view(shape)

    def _carrier(self, quantized: QuantizedTensor) -> Tensor:
        """What carries the gradient to the latent weight, [N, K...]; products do not look at its values."""
        if not torch.is_grad_enabled() or is_straight_through(self.quantizer):
            return self.oriented_weight().float()
        return self.fake_weight(quantized)

    def relaxed_weight(self, quantized: QuantizedTensor) -> Relaxed:
        """What stands for the weight [N, K] where the ramp is below 1."""
        parameters = dict(self.quantizer_parameters.items())
        return relaxed(self.quantizer, self.weight_matrix(), quantized, self.ramp, **parameters)

    def product(self, op: Bilinear, x: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output for x, in x's type.

        Computed in float32, also under autocast, which then is the gradients' alone; where `compute` says
        "model", in x's type or autocast's.
        """
        dtype, out = torch.float32, x.dtype
        autocast = torch.is_autocast_enabled(x.device.type)
        lower = torch.get_autocast_dtype(x.device.type) if autocast else None
        if self.compute == "model":
            dtype = out = lower or x.dtype
        with torch.autocast(x.device.type, enabled=False):
            quantized = self.quantized_weight()
            int8 = self.activations == "int8"
            if self.ramp >= 1:
                y = self._quantized(op, x.to(dtype), quantized, int8, lower)
            else:
                soft = self.relaxed_weight(quantized)
                weight = soft.weight.view(self.oriented_weight().shape)
                y = blended_product(op, x.to(dtype), weight, int8, self.ramp)
                if soft.bias is not None:
                    y = y + soft.bias.sum(dim=1).reshape(-1, *[1] * op.trailing)
            if bias is not None:
                y = y + bias.float().reshape(-1, *[1] * op.trailing)
            return y.to(out)

    def _quantized(
        self,
        op: Bilinear,
        x: Tensor,
        quantized: QuantizedTensor,
        int8: bool,
        gradients: torch.dtype | None,
    ) -> Tensor:
        if not isinstance(self.quantizer, FrozenCodes) or not quantized.on_output:
            return quantized_product(op, x, self._carrier(quantized), quantized, int8, gradients)
        y = quantized_product(op, x, self.oriented_weight(), quantized, int8, gradients)
        return follow_gain(y, self.quantizer_parameters["gain"], op.trailing)

    def extra_repr(self) -> str:
        """The layer's own description and the quantizer's name."""
        return f"{super().extra_repr()}, quantizer={self.quantizer_name}, activations={self.activations}"


class QATLinear(QATLayer, nn.Linear):
    """A Linear with a fake-quantised weight: x [..., K] gives [..., N], activations quantised per token."""

    float_class = nn.Linear
    kind = "linear"

    def forward(self, input: Tensor) -> Tensor:
        """The arithmetic of product.py, plus the bias."""
        return self.product(MatMul(), input, self.bias)


class _QATTransposed(QATLayer):
    """transformers' `Conv1D` with a fake-quantised weight, which it stores as [K, N]."""

    kind = "linear"
    transposed = True
    bias: Tensor

    def oriented_weight(self) -> Tensor:
        """[N, K]; a copy, so that sums run in the order in which the packed network has them."""
        return self.weight.t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """The arithmetic of product.py, plus the bias."""
        return self.product(MatMul(), x, self.bias)


class _QATConv(QATLayer, _ConvNd):
    def forward(self, input: Tensor) -> Tensor:
        """The arithmetic of product.py, plus the bias. x [C, *space] without a batch is one sample."""
        dims = len(self.stride)
        batched = input.dim() == dims + 2
        x = input if batched else input[None]
        padding: tuple[int, ...] = (0,) * dims
        if self.padding_mode != "zeros":  # copies of values of x: the activation scale stays the same
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        elif isinstance(self.padding, str):  # "same" may need more at the end than at the beginning
            x = F.pad(x, self._reversed_padding_repeated_twice)
        else:
            padding = self.padding
        y = self.product(Convolution(self.stride, padding, self.dilation, self.groups), x, self.bias)
        return y if batched else y[0]


class QATConv1d(_QATConv, nn.Conv1d):
    """A Conv1d with a fake-quantised weight, activations quantised per sample."""

    float_class = nn.Conv1d
    kind = "conv1d"


class QATConv2d(_QATConv, nn.Conv2d):
    """A Conv2d with a fake-quantised weight, activations quantised per sample."""

    float_class = nn.Conv2d
    kind = "conv2d"


class QATEmbedding(QATLayer, nn.Embedding):
    """An embedding with fake-quantised rows; its output is codes times scale.

    Its `activations` are for the record: it has none, but a head that is tied to it is packed with them.
    """

    float_class = nn.Embedding
    kind = "embedding"

    def forward(self, input: Tensor) -> Tensor:
        """The rows at `input`, [...] gives [..., K], in the weight's type."""
        quantized = self.quantized_weight()
        fake = self.fake_weight(quantized) if self.ramp >= 1 else self.relaxed_weight(quantized).weight
        rows = F.embedding(input, fake, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)
        return rows.to(self.weight_dtype)


class _QATScaled(QATEmbedding):
    """An embedding of transformers whose rows are multiplied by `embed_scale`."""

    embed_scale: Tensor | float

    def forward(self, input: Tensor) -> Tensor:
        """The scaled rows at `input`."""
        return scaled(super().forward(input), self.embed_scale)


def scaled(rows: Tensor, factor: Tensor | float) -> Tensor:
    """Rows times a factor in their type."""
    return rows * (factor.to(rows.dtype) if isinstance(factor, Tensor) else factor)


_LAYERS: dict[LayerKind, type[QATLayer]] = {
    cls.kind: cls for cls in (QATLinear, QATConv1d, QATConv2d, QATEmbedding)
}


def qat_class(layer: nn.Module) -> type[QATLayer]:
    """The class that adopts this layer. UsageError where its forward is none that we know."""
    kind = kind_of(layer)
    if kind is None:
        raise UsageError(f"{type(layer).__name__} has a forward of its own and cannot be fake-quantised")
    base = _QATTransposed if is_transposed(layer) else _QATScaled if is_scaled(layer) else _LAYERS[kind]
    return base if getattr(base, "float_class", None) is type(layer) else _derived(base, type(layer))  # type: ignore[arg-type]


@functools.cache  # so that equal classes are one
def _derived(base: type[QATLayer], cls: type[nn.Module]) -> type[QATLayer]:
    """`base` for a subclass of its own class, whose other methods and attributes stay."""
    return type(f"QAT{cls.__name__}", (base, cls), {"float_class": cls, "__module__": base.__module__})


def qat_layers(model: nn.Module) -> dict[str, QATLayer]:
    """The fake-quantised layers by module name, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QATLayer)}


def latent_weights(model: nn.Module) -> list[Tensor]:
    """The parameters that are quantised in the forward, each once."""
    return list(dict.fromkeys(layer.weight for layer in qat_layers(model).values()))


def scale_parameters(model: nn.Module) -> list[Tensor]:
    """What quantizers learn, each once."""
    layers = qat_layers(model).values()
    return list(dict.fromkeys(p for layer in layers for p in layer.quantizer_parameters.parameters()))


def set_ramp(model: nn.Module, value: float) -> None:
    """Set how far every layer is from full precision (0) to quantised (1); UsageError outside [0, 1]."""
    if not 0 <= value <= 1:
        raise UsageError(f"a ramp goes from 0 to 1, not {value}")
    for layer in qat_layers(model).values():
        layer.ramp = float(value)


@contextlib.contextmanager
def computing_as_given(model: nn.Module) -> Iterator[None]:
    """In this context layers with float activations compute in the type of those, or autocast's."""
    layers = [layer for layer in qat_layers(model).values() if layer.activations == "float"]
    before = [layer.compute for layer in layers]
    for layer in layers:
        layer.compute = "model"
    try:
        yield
    finally:
        for layer, compute in zip(layers, before, strict=True):
            layer.compute = compute


def full_precision_state(model: nn.Module) -> dict[str, Any]:
    """The state dictionary without quantizer parameters; the tensors themselves, not detached."""
    layers = [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, QATLayer)]
    own = tuple(f"{name}.quantizer_parameters." if name else "quantizer_parameters." for name in layers)
    return {k: v for k, v in model.state_dict(keep_vars=True).items() if not k.startswith(own)}
