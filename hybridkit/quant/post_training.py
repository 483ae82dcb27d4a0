"""Quantising after the fact: no training, and the error that costs."""

from __future__ import annotations

import copy
import glob
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.packing.model import PackedLayer, PackedModel, Sizes, write_packed
from hybridkit.quant.allocation import allocate_bits
from hybridkit.quant.convert import FloatDtype, convert, packing_source, row_blocks
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.plan import QuantizerSpec, exempt_layers, make_quantizer
from hybridkit.quant.prepare import prepare_qat
from hybridkit.quant.protocol import Activations, is_ternary

_M = TypeVar("_M", bound=nn.Module)

# Bits of an embedding; 8-tensor has one step for all rows: more error, and codes that zstd shrinks well.
Embeddings = Literal[8, 4, "8-tensor"]
_EMBEDDINGS: Final[dict[Embeddings, QuantizerSpec]] = {
    8: {"quantizer": "nbit", "bits": 8},
    4: {"quantizer": "nbit", "bits": 4, "group_size": 64},
    "8-tensor": {"quantizer": "nbit", "bits": 8, "granularity": "tensor"},
}


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
    embeddings: Embeddings | None = None,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
    float_dtype: FloatDtype | None = None,
) -> QuantizationReport:
    """Quantise and pack `model` without training it; the model itself is not changed, nor its weights copied.

    A model that was prepared with `prepare_qat` is packed as it trained; then only `metadata`, `codec` and
    `float_dtype` apply. Otherwise `target_bits` asks for a mean of bits per weight, spent by `allocate_bits`
    over 1-bit, n-bit and `quantizer`, which has to be ternary then; `embeddings` gives the embeddings, the
    last Linear and what is tied to them 8 or 4 bits (8-tensor: one step for all rows, which compresses
    better); `overrides` win over both. Everything else as in
    `prepare_qat` and `convert`, UsageError included.
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
        embeddings=embeddings,
    )
    packed = convert(prepared, metadata=metadata, codec=codec, float_dtype=float_dtype)
    layers = qat_layers(prepared)
    rows = [_report(layer, layers[name].weight) for name, layer in packed.layers.items()]
    return QuantizationReport(packed, tuple(rows))


def quantize_to_file(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
    float_dtype: FloatDtype | None = None,
    compress: Literal["zstd"] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    **how: Any,
) -> tuple[Sizes, tuple[LayerReport, ...]]:
    """As `quantize`, into a file and layer by layer: memory beyond the model is bounded by its largest layer.

    `how`: the other arguments of `quantize`. `weights` are those of a model on the meta device, by name, as
    `open_tensors` gives them; then no more than a layer of it is ever in memory. Raises FileError too.
    """
    prepared = quantised_copy(model, **how)
    rows: list[LayerReport] = []
    source = packing_source(
        prepared,
        metadata=metadata,
        codec=codec,
        float_dtype=float_dtype,
        weights=weights,
        seen=lambda layer, weight: rows.append(_report(layer, weight)),
    )
    sizes = write_packed(path, source, compress=compress)
    return sizes, tuple(rows)


def quantised_copy(
    model: _M,
    *,
    quantizer: QuantizerSpec = "ternary-mse",
    options: Mapping[str, Any] | None = None,
    target_bits: float | None = None,
    overrides: Mapping[str, QuantizerSpec] | None = None,
    embeddings: Embeddings | None = None,
    **how: Any,
) -> _M:
    """`model` if it is prepared, else a prepared copy that shares its tensors; `how` as in `quantize`."""
    if qat_layers(model):
        return model
    if target_bits is not None:
        if any(weight.is_meta for weight in model.parameters()):
            raise UsageError("target bits need the weights in memory, and they are still in their file")
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
    if embeddings is not None:
        overrides = {**embedding_overrides(model, embeddings, how.get("example_inputs")), **(overrides or {})}
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


def embedding_overrides(
    model: nn.Module, how: Embeddings, example_inputs: Sequence[Tensor] | None = None
) -> dict[str, QuantizerSpec]:
    """n-bit quantizers for what stays in full precision by default, as `overrides` of `prepare_qat`."""
    if how not in _EMBEDDINGS:
        raise UsageError(f"embeddings take {', '.join(map(str, _EMBEDDINGS))} bits, not {how}")
    return {glob.escape(name): _EMBEDDINGS[how] for name in exempt_layers(model, example_inputs)}


def _report(layer: PackedLayer, weight: Tensor) -> LayerReport:
    error = size = 0.0
    for rows in row_blocks(weight):
        latent = weight.detach()[rows].float().cpu()
        error = math.hypot(error, float(torch.dist(latent, torch.from_numpy(layer.dequantize(rows)))))
        size = math.hypot(size, float(torch.linalg.vector_norm(latent)))
    relative = error / size if size > 0 else error
    return LayerReport(layer.name, layer.shape, layer.quantizer, layer.bits, layer.zero_fraction, relative)
