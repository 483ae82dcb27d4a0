"""Quantising after the fact: no training, and the error that costs."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.packing.model import LayerSource, PackedLayer, PackedModel, Sizes, write_packed
from hybridkit.quant.allocation import allocate_bits
from hybridkit.quant.convert import convert, packing_source
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.plan import QuantizerSpec, make_quantizer
from hybridkit.quant.prepare import prepare_qat
from hybridkit.quant.protocol import Activations, is_ternary

_M = TypeVar("_M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What quantising one layer did. `relative_error` = ||W - Q|| / ||W||, in Frobenius norms."""

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

    A model that was prepared with `prepare_qat` is packed as it trained; then only `metadata` and `codec`
    apply. Otherwise `target_bits` asks for a mean of bits per weight, spent by `allocate_bits` over 1-bit,
    n-bit and `quantizer`, which has to be ternary then; `overrides` win over what it chose. Everything else
    as in `prepare_qat` and `convert`, UsageError included.
    """
    prepared = quantised_copy(
        model,
        quantizer=quantizer,
        options=options,
        activations=activations,
        quantize_all=quantize_all,
        target_bits=target_bits,
        overrides=overrides,
        example_inputs=example_inputs,
    )
    packed = convert(prepared, metadata=metadata, codec=codec)
    layers = qat_layers(prepared)
    rows = [_report(layer, layers[name].weight) for name, layer in packed.layers.items()]
    return QuantizationReport(packed, tuple(rows))


def quantize_to_file(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
    compress: Literal["zstd"] | None = None,
    **how: Any,
) -> tuple[Sizes, tuple[LayerReport, ...]]:
    """As `quantize`, into a file and layer by layer: memory beyond the model is bounded by its largest layer.

    `how`: the other arguments of `quantize`. Raises FileError too.
    """
    prepared = quantised_copy(model, **how)
    weights = {name: layer.weight for name, layer in qat_layers(prepared).items()}
    source = packing_source(prepared, metadata=metadata, codec=codec)
    rows: list[LayerReport] = []

    def reported(layer: LayerSource) -> PackedLayer:
        packed = layer.produce()
        rows.append(_report(packed, weights[packed.name]))
        return packed

    layers = [dataclasses.replace(layer, produce=partial(reported, layer)) for layer in source.layers]
    sizes = write_packed(path, dataclasses.replace(source, layers=layers), compress=compress)
    return sizes, tuple(rows)


def quantised_copy(
    model: _M,
    *,
    quantizer: QuantizerSpec = "ternary-mse",
    options: Mapping[str, Any] | None = None,
    target_bits: float | None = None,
    overrides: Mapping[str, QuantizerSpec] | None = None,
    **how: Any,
) -> _M:
    """`model` if it is prepared, else a prepared copy that shares its tensors; `how` as in `quantize`."""
    if qat_layers(model):
        return model
    if target_bits is not None:
        made, name = make_quantizer(quantizer, options)
        if made is None or not is_ternary(made):
            raise UsageError(
                f"target bits are spent on 1-bit, ternary and n-bit weights; {name!r} is not ternary"
            )
        allocated = allocate_bits(
            model,
            target_bits,
            quantize_all=how.get("quantize_all", False),
            ternary={"quantizer": quantizer, **(options or {})} if isinstance(quantizer, str) else quantizer,
            example_inputs=how.get("example_inputs"),
        )
        overrides = {**allocated, **(overrides or {})}
    return prepare_qat(
        sharing_copy(model),
        quantizer=quantizer,
        options=options,
        overrides=overrides,
        **{"activations": "float", **how},
    )


def sharing_copy(model: _M) -> _M:
    """A copy of the modules that holds the very same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _report(layer: PackedLayer, weight: Tensor) -> LayerReport:
    latent = weight.detach().float().cpu()
    error, size = torch.dist(latent, torch.from_numpy(layer.dequantize())), torch.linalg.vector_norm(latent)
    relative = float(error / size) if size > 0 else float(error)
    return LayerReport(layer.name, layer.shape, layer.quantizer, layer.bits, layer.zero_fraction, relative)
