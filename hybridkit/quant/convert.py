"""From a model with fake-quantised layers to packed weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.packing.codecs import Codec, codec_for
from hybridkit.packing.codecs import codec as codec_called
from hybridkit.packing.layers import LayerKind
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
from hybridkit.quant.layers import (
    QATConv1d,
    QATConv2d,
    QATEmbedding,
    QATLayer,
    QATLinear,
    full_precision_state,
    qat_layers,
)

_KINDS: dict[type[QATLayer], LayerKind] = {
    QATLinear: "linear",
    QATConv1d: "conv1d",
    QATConv2d: "conv2d",
    QATEmbedding: "embedding",
}


def convert(
    model: nn.Module, *, metadata: Mapping[str, Any] | None = None, codec: str | None = None
) -> PackedModel:
    """The packed weights of a prepared model: the codes and scales that it computes with, bit for bit.

    Everything that is not a quantised weight goes in (floating point as float32) under its name in the state
    dictionary; learned quantizer parameters are folded into the scales; tied weights are stored once.
    `codec` is used for the layers whose levels it holds (`base3` stores ternary ones in 1.6 bits), others
    take their default.

    Raises UsageError if the model has no fake-quantised layer, is on the ramp from full precision, holds a
    weight that is not finite, or `codec` fits no layer.
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

    Raises what `convert` raises, and FileError. Memory beyond the model is bounded by what quantising its
    largest layer takes.
    """
    return write_packed(path, packing_source(model, metadata=metadata, codec=codec), compress=compress)


def packing_source(
    model: nn.Module, *, metadata: Mapping[str, Any] | None = None, codec: str | None = None
) -> ModelSource:
    """What `convert` packs, each piece produced when it is asked for."""
    layers = {_weight_name(name): (name, layer) for name, layer in qat_layers(model).items()}
    if not layers:
        raise UsageError("the model has no quantised layer; call prepare_qat first, or use quantize")
    state = full_precision_state(model)
    stored: dict[int, str] = {}
    # Quantised weights first: their name is the stored one and all others are aliases of it.
    for name in sorted(state, key=lambda name: name not in layers):
        stored.setdefault(id(state[name]), name)
    names = {name: stored[id(tensor)] for name, tensor in state.items()}
    tied = {alias: name for alias, name in names.items() if alias != name}
    packed = [layers[name] for name in layers if name not in tied]
    wanted = codec_called(codec) if codec else None
    if wanted and not any(_holds(wanted, layer) for _, layer in packed):
        raise UsageError(f"the codec {wanted.name!r} holds the levels of no layer")
    tensors = {
        name: _tensor_source(tensor)
        for name, tensor in state.items()
        if name not in tied and name not in layers
    }
    sources = [_layer_source(name, layer, wanted) for name, layer in packed]
    return ModelSource(sources, tensors, tied, dict(metadata or {}))


def _weight_name(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _holds(codec: Codec, layer: QATLayer) -> bool:
    return set(layer.quantizer.levels) <= set(codec.levels)


def _layer_source(name: str, layer: QATLayer, wanted: Codec | None) -> LayerSource:
    if layer.ramp < 1:
        raise UsageError(
            f"layer {name!r} is on the ramp from full precision; train on (hybridkit train --resume RUN) or "
            "end it with set_ramp(model, 1)"
        )
    codec = wanted if wanted and _holds(wanted, layer) else codec_for(layer.quantizer.levels)
    spec = LayerSpec(
        name=name,
        kind=_KINDS[type(layer)],
        codec=codec.name,
        shape=tuple(layer.weight.shape),
        bits=layer.quantizer.bits,
        activations=layer.activations,
        group_size=_group_size(layer),
        quantizer=layer.quantizer_name,
    )

    def produce() -> PackedLayer:
        if not torch.isfinite(layer.weight).all():
            raise UsageError(
                f"layer {name!r} has weights that are not finite; go back to an earlier checkpoint"
            )
        quantized = layer.quantized_weight()
        return PackedLayer(
            **{field.name: getattr(spec, field.name) for field in fields(LayerSpec)},
            codes=codec.pack(quantized.codes.cpu().numpy()),
            scale=quantized.scale.detach().float().cpu().numpy(),
        )

    return LayerSource(spec, produce)


def _group_size(layer: QATLayer) -> int:
    """The quantizer's group size, which only a quantised tensor tells: that of one row of zeros."""
    row = layer.weight_matrix().new_zeros(1, layer.weight[0].numel())
    return layer.quantizer.quantize(row, **layer.quantizer.parameters(row)).group_size


def _tensor_source(tensor: Tensor) -> TensorSource:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype

    def produce() -> NDArray[Any]:
        array: NDArray[Any] = tensor.detach().to("cpu", dtype, copy=True).numpy()
        return np.asarray(array, order="C")  # ascontiguousarray would make a 0-d array 1-d

    return TensorSource(
        TensorSpec.of(torch.empty(0, dtype=dtype).numpy().dtype, tuple(tensor.shape)), produce
    )
