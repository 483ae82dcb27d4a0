"""From a model with fake-quantised layers to packed weights."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.packing.codecs import Codec, codec_for
from hybridkit.packing.codecs import codec as codec_called
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
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.layers import QATLayer, full_precision_state, qat_layers
from hybridkit.quant.prepare import prepared
from hybridkit.quant.protocol import QuantizedTensor, Quantizer


def convert(
    model: nn.Module, *, metadata: Mapping[str, Any] | None = None, codec: str | None = None
) -> PackedModel:
    """The packed weights of a prepared model: the codes and scales that it computes with, bit for bit.

    Everything that is not a quantised weight goes in (floating point as float32) under its name in the state
    dictionary; learned quantizer parameters are folded into the scales; tied weights are stored once.
    `codec` is used for the layers whose levels it holds (`base3` stores ternary ones in 1.6 bits), others
    take their default. The metadata also hold `quantization`, the QuantConfig as JSON.

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
    tied = tied_names(state, layers)
    packed = {name: layer for weight, (name, layer) in layers.items() if weight not in tied}
    wanted = wanted_codec(codec, [layer.quantizer for layer in packed.values()])
    tensors = {
        name: tensor_source(tensor)
        for name, tensor in state.items()
        if name not in tied and name not in layers
    }
    sources = [_layer_source(name, layer, wanted) for name, layer in packed.items()]
    done = prepared(model)
    return ModelSource(sources, tensors, tied, with_config(metadata, done.config if done else None))


def tied_names(state: Mapping[str, Tensor], first: Collection[str]) -> dict[str, str]:
    """The names whose tensor has another name too: alias -> stored name, one of `first` if it can be."""
    stored: dict[int, str] = {}
    for name in sorted(state, key=lambda name: name not in first):
        stored.setdefault(id(state[name]), name)
    names = {name: stored[id(tensor)] for name, tensor in state.items()}
    return {alias: name for alias, name in names.items() if alias != name}


def wanted_codec(name: str | None, quantizers: Collection[Quantizer]) -> Codec | None:
    """The codec of this name. UsageError where it holds the levels of no quantizer."""
    wanted = codec_called(name) if name else None
    if wanted and not any(_holds(wanted, quantizer) for quantizer in quantizers):
        raise UsageError(f"the codec {wanted.name!r} holds the levels of no layer")
    return wanted


def with_config(metadata: Mapping[str, Any] | None, config: QuantConfig | None) -> dict[str, Any]:
    """`metadata` with the configuration as `quantization`, where it can be written down."""
    written = {}
    if config is not None:
        with contextlib.suppress(UsageError):  # a quantizer that is an object has no name
            written["quantization"] = config.to_json()
    return {**written, **(metadata or {})}


def _weight_name(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _holds(codec: Codec, quantizer: Quantizer) -> bool:
    return set(quantizer.levels) <= set(codec.levels)


def layer_source(
    made_by: Quantizer, quantized: Callable[[], QuantizedTensor], wanted: Codec | None, **known: Any
) -> LayerSource:
    """A layer that is packed when its turn comes; `known` are the other fields of its LayerSpec."""
    codec = wanted if wanted and _holds(wanted, made_by) else codec_for(made_by.levels)
    # Only a quantised tensor tells the group size: that of one row of zeros.
    row = torch.zeros(1, math.prod(known["shape"][1:]))
    group_size = made_by.quantize(row, **made_by.parameters(row)).group_size
    spec = LayerSpec(codec=codec.name, bits=made_by.bits, group_size=group_size, **known)

    def produce() -> PackedLayer:
        made = quantized()
        return PackedLayer(
            **{field.name: getattr(spec, field.name) for field in fields(LayerSpec)},
            codes=codec.pack(made.codes.cpu().numpy()),
            scale=made.scale.detach().float().cpu().numpy(),
        )

    return LayerSource(spec, produce)


def _layer_source(name: str, layer: QATLayer, wanted: Codec | None) -> LayerSource:
    if layer.ramp < 1:
        raise UsageError(
            f"layer {name!r} is on the ramp from full precision; train on (hybridkit train --resume RUN) or "
            "end it with set_ramp(model, 1)"
        )

    def quantized() -> QuantizedTensor:
        if not torch.isfinite(layer.weight).all():
            raise UsageError(
                f"layer {name!r} has weights that are not finite; go back to an earlier checkpoint"
            )
        return layer.quantized_weight()

    return layer_source(
        layer.quantizer,
        quantized,
        wanted,
        name=name,
        kind=layer.kind,
        shape=tuple(layer.oriented_weight().shape),
        activations=layer.activations,
        quantizer=layer.quantizer_name,
    )


def tensor_source(known: Tensor, read: Callable[[], Tensor] | None = None) -> TensorSource:
    """A tensor that is fetched when its turn comes: `known`, or what `read` gives, which is of its shape."""
    dtype = torch.float32 if known.is_floating_point() else known.dtype

    def produce() -> NDArray[Any]:
        tensor = read() if read else known
        array: NDArray[Any] = tensor.detach().to("cpu", dtype, copy=True).numpy()
        return np.asarray(array, order="C")  # ascontiguousarray would make a 0-d array 1-d

    return TensorSource(TensorSpec.of(torch.empty(0, dtype=dtype).numpy().dtype, tuple(known.shape)), produce)
