"""Quantising after the fact: no training, and the error that costs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hybridkit.packing.model import PackedModel, Sizes
from hybridkit.quant.convert import convert
from hybridkit.quant.layers import as_matrix, qat_layers
from hybridkit.quant.prepare import QuantizerSpec, prepare_qat
from hybridkit.quant.protocol import Activations, Quantizer


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What quantising one layer did. `relative_error` = ||W - Q(W)|| / ||W|| (Frobenius norms)."""

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
        """Bytes, bits per weight and ratios of the packed model."""
        return self.packed.sizes()


def quantize(
    model: nn.Module,
    *,
    quantizer: str | Quantizer = "ternary-mse",
    options: Mapping[str, Any] | None = None,
    activations: Activations = "float",
    quantize_all: bool = False,
    target_bits: float | None = None,
    overrides: Mapping[str, QuantizerSpec] | None = None,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
) -> QuantizationReport:
    """Quantise and pack `model` without training it; the model itself is not changed.

    A model that was prepared with `prepare_qat` is packed as it trained; `quantizer`, `activations` and
    the policy then do not apply. The other arguments are those of `prepare_qat` and `convert`.
    target_bits: mean bits per quantised weight, spent where the error is largest (`allocate_bits`).

    Raises UsageError as `prepare_qat` and `convert` do.
    """
    if not qat_layers(model):
        model = copy.deepcopy(model)
        if target_bits is not None:
            from hybridkit.quant.allocation import allocate_bits

            overrides = {**allocate_bits(model, target_bits, quantize_all=quantize_all), **(overrides or {})}
        model = prepare_qat(
            model,
            quantizer=quantizer,
            options=options,
            activations=activations,
            quantize_all=quantize_all,
            overrides=overrides,
        )
    packed = convert(model, metadata=metadata, codec=codec)
    return QuantizationReport(packed, tuple(_report(model, packed)))


def _report(model: nn.Module, packed: PackedModel) -> list[LayerReport]:
    layers = qat_layers(model)
    rows = []
    for name, layer in packed.layers.items():
        weight = as_matrix(layers[name].weight.detach().float().cpu())
        error = torch.linalg.vector_norm(weight - as_matrix(torch.from_numpy(layer.dequantize())))
        size = torch.linalg.vector_norm(weight)
        rows.append(
            LayerReport(
                name,
                layer.shape,
                layer.quantizer,
                layer.bits,
                layer.zero_fraction,
                float(error / size) if size > 0 else 0.0,
            )
        )
    return rows
