"""Quantising after the fact: no training, and the error that costs."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hybridkit.packing.layers import PackedLayer
from hybridkit.packing.model import PackedModel, Sizes
from hybridkit.quant.convert import convert
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.plan import QuantizerSpec
from hybridkit.quant.prepare import prepare_qat
from hybridkit.quant.protocol import Activations

_M = TypeVar("_M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What quantising one layer did. `relative_error` = ||W - Q|| / ||W|| (Frobenius norms; 0 where W is 0)."""

    name: str
    shape: tuple[int, ...]
    quantizer: str
    bits: float
    zero_fraction: float
    relative_error: float


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """The packed model and a row per quantised layer."""

    packed: PackedModel
    layers: tuple[LayerReport, ...]

    @property
    def sizes(self) -> Sizes:
        """Bytes, bits per weight and ratios of the packed model as a file."""
        return self.packed.sizes()


def quantize(
    model: nn.Module,
    *,
    quantizer: QuantizerSpec = "ternary-mse",
    options: Mapping[str, Any] | None = None,
    activations: Activations = "float",
    quantize_all: bool = False,
    target_bits: float | None = None,
    overrides: Mapping[str, QuantizerSpec] | None = None,
    example_inputs: Sequence[Tensor] | None = None,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
) -> QuantizationReport:
    """Quantise and pack `model` without training it; the model itself is not changed, nor its weights copied.

    A model that was prepared with `prepare_qat` is packed as it trained; then only `metadata` and `codec` apply.
    `target_bits`: mean bits per quantised weight, spent by `allocate_bits`; `overrides` win over what it chose.
    Everything else as in `prepare_qat` and `convert`, UsageError included.
    """
    if not qat_layers(model):
        if target_bits is not None:
            from hybridkit.quant.allocation import allocate_bits

            allocated = allocate_bits(
                model, target_bits, quantize_all=quantize_all, example_inputs=example_inputs
            )
            overrides = {**allocated, **(overrides or {})}
        model = prepare_qat(
            sharing_copy(model),
            quantizer=quantizer,
            options=options,
            activations=activations,
            quantize_all=quantize_all,
            overrides=overrides,
            example_inputs=example_inputs,
        )
    packed = convert(model, metadata=metadata, codec=codec)
    layers = qat_layers(model)
    return QuantizationReport(
        packed, tuple(_report(layer, layers[name].weight) for name, layer in packed.layers.items())
    )


def sharing_copy(model: _M) -> _M:
    """A copy of the modules that holds the very same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _report(layer: PackedLayer, weight: Tensor) -> LayerReport:
    latent = weight.detach().float().cpu()
    error, size = torch.dist(latent, torch.from_numpy(layer.dequantize())), torch.linalg.vector_norm(latent)
    relative = float(error / size) if size > 0 else float(error)
    assert math.isfinite(relative)
    return LayerReport(layer.name, layer.shape, layer.quantizer, layer.bits, layer.zero_fraction, relative)
