"""From a model with fake-quantised layers to packed weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.packing.codecs import codec as codec_called
from hybridkit.packing.codecs import codec_for
from hybridkit.packing.model import (
    LayerSource,
    LayerSpec,
    ModelSource,
    PackedLayer,
    PackedModel,
    Sizes,
    TensorSource,
    TensorSpec,
    write_packed,
)
from hybridkit.quant.layers import QATConv1d, QATConv2d, QATEmbedding, QATLayer, QATLinear, qat_layers

_KINDS: dict[type[nn.Module], Literal["linear", "conv1d", "conv2d", "embedding"]] = {
    QATLinear: "linear",
    QATConv1d: "conv1d",
    QATConv2d: "conv2d",
    QATEmbedding: "embedding",
}


def convert(
    model: nn.Module, *, metadata: Mapping[str, Any] | None = None, codec: str | None = None
) -> PackedModel:
    """The packed weights of a prepared model: the codes and scales that it computes with, bit for bit.

    Everything that is not a quantised weight goes in as it is (floating point as float32) under its name in
    the state dictionary; learned quantizer parameters are folded into the scales. Tied weights are stored
    once. codec: `base3` stores ternary layers in 1.6 bits instead of 2.

    Raises UsageError if the model has no fake-quantised layer, is on the ramp from full precision, holds a
    weight that is not finite, or the codec does not hold its levels.
    """
    source = packing_source(model, metadata=metadata, codec=codec)
    layers = [layer.produce() for layer in source.layers]
    tensors = {name: tensor.produce() for name, tensor in source.tensors.items()}
    return PackedModel({layer.name: layer for layer in layers}, tensors, source.tied, source.metadata)


def pack_to_file(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
    compress: Literal["zstd"] | None = None,
) -> Sizes:
    """Write `convert(model)` to a file layer by layer, atomically.

    Memory beyond the model is bounded by what quantising its largest layer takes.
    """
    return write_packed(path, packing_source(model, metadata=metadata, codec=codec), compress=compress)


def packing_source(
    model: nn.Module, *, metadata: Mapping[str, Any] | None = None, codec: str | None = None
) -> ModelSource:
    """What `convert` packs, each piece produced when it is asked for."""
    found = qat_layers(model)
    if not found:
        raise UsageError("the model has no quantised layer; call prepare_qat first, or use quantize")
    names, tied = _stored_names(model)
    layers: list[LayerSource] = []
    packed: set[str] = set()
    for name, layer in found.items():
        weight_name = f"{name}.weight" if name else "weight"
        if weight_name not in tied and weight_name not in packed:
            layers.append(_layer_source(name, layer, codec))
        packed.add(weight_name)
    tensors = {
        name: _tensor_source(tensor)
        for name, tensor in names.items()
        if name not in packed and not _is_quantizer_parameter(name)
    }
    tied = {alias: name for alias, name in tied.items() if not _is_quantizer_parameter(alias)}
    return ModelSource(layers, tensors, tied, dict(metadata or {}))


def _is_quantizer_parameter(name: str) -> bool:
    return "weight_quantizer" in name.split(".")


def _stored_names(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State-dictionary entries by name, each tensor once, and alias -> name for the others."""
    quantised = {f"{name}.weight" if name else "weight" for name in qat_layers(model)}
    state = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    # a quantised layer's weight is the stored name, or an alias could point at a tensor that is not there
    for name in sorted(state, key=lambda n: n not in quantised):
        first.setdefault(id(state[name]), name)
    stored = {name: tensor for name, tensor in state.items() if first[id(tensor)] == name}
    tied = {name: first[id(tensor)] for name, tensor in state.items() if first[id(tensor)] != name}
    return stored, tied


def _layer_source(name: str, layer: QATLayer, codec: str | None) -> LayerSource:
    weight_quantizer = layer.weight_quantizer
    levels = weight_quantizer.quantizer.levels
    chosen = codec_for(levels)
    if codec is not None and set(levels) <= set(codec_called(codec).levels):
        chosen = codec_called(codec)
    if weight_quantizer.ramp < 1:
        raise UsageError(f"layer {name!r} is still on the ramp from full precision; finish it with set_ramp")
    group_size = _group_size(layer)
    spec = LayerSpec(
        name=name,
        kind=_KINDS[type(layer)],
        codec=chosen.name,
        shape=tuple(layer.weight.shape),
        bits=weight_quantizer.quantizer.bits,
        activations=weight_quantizer.activations,  # an embedding has none, but a head tied to it does
        group_size=group_size,
        quantizer=weight_quantizer.name,
    )

    def produce() -> PackedLayer:
        weight = layer.weight.detach()
        if not bool(torch.isfinite(weight).all()):
            raise UsageError(f"layer {name!r} has weights that are not finite")
        quantized = weight_quantizer.quantize(weight)
        return PackedLayer(
            **{key: getattr(spec, key) for key in LayerSpec.__dataclass_fields__},
            codes=chosen.pack(quantized.codes.cpu().numpy()),
            scale=quantized.scale.detach().cpu().numpy().astype(np.float32, copy=False),
        )

    return LayerSource(spec, produce)


def _group_size(layer: QATLayer) -> int:
    """The group size of the layer's quantizer, found out on one row."""
    return layer.weight_quantizer.quantizer.quantize(
        torch.zeros(1, layer.weight[0].numel()), **_first_rows(layer)
    ).group_size


def _first_rows(layer: QATLayer) -> dict[str, Tensor]:
    return {name: p.detach()[:1].cpu() for name, p in layer.weight_quantizer.named_parameters()}


def _tensor_source(tensor: Tensor) -> TensorSource:
    dtype = np.dtype(np.float32) if tensor.is_floating_point() else _numpy_dtype(tensor)

    def produce() -> NDArray[Any]:
        array = tensor.detach().to("cpu", copy=True).to(_torch_dtype(tensor)).numpy()
        return np.asarray(array, order="C")  # ascontiguousarray would make a 0-d array 1-d

    return TensorSource(TensorSpec.of(dtype, tuple(tensor.shape)), produce)


def _torch_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _numpy_dtype(tensor: Tensor) -> np.dtype[Any]:
    return torch.empty(0, dtype=tensor.dtype).numpy().dtype
