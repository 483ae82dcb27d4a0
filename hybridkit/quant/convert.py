"""From a model with fake-quantised layers to packed weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.packing.codecs import Codec, codec_for
from hybridkit.packing.codecs import codec as codec_called
from hybridkit.packing.layers import LayerKind, as_fp16
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
from hybridkit.quant.protocol import QuantizedTensor

FloatDtype = Literal["fp32", "fp16", "bf16"]
_FLOATS: Final[dict[str, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_BLOCK: Final = 1 << 20  # weights quantised at a time: bounds what that takes

_KINDS: dict[type[QATLayer], LayerKind] = {
    QATLinear: "linear",
    QATConv1d: "conv1d",
    QATConv2d: "conv2d",
    QATEmbedding: "embedding",
}


def convert(
    model: nn.Module,
    *,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
    float_dtype: FloatDtype | None = None,
) -> PackedModel:
    """The packed weights of a prepared model: the codes and scales that it computes with, bit for bit.

    Everything that is not a quantised weight goes in under its name in the state dictionary; learned
    quantizer parameters are folded into the scales; tied weights are stored once. `codec` is used for the
    layers whose levels it holds (`base3` stores ternary ones in 1.6 bits), others take their default.

    `float_dtype` is what floating-point tensors are stored in: `fp32`, `fp16` or `bf16`; by default fp16 and
    bf16 stay what they are and all others become fp32. Only where it says fp16 or bf16 are scales stored in
    fp16 too, in the layers where `harmless` says so; then the result is no longer the trained one to the bit.

    Raises UsageError if the model has no fake-quantised layer, is on the ramp from full precision, holds a
    weight that is not finite or a tensor that fp16 cannot hold, or `codec` fits no layer.
    """
    source = packing_source(model, metadata=metadata, codec=codec, float_dtype=float_dtype)
    layers = [layer.produce() for layer in source.layers]
    tensors = {name: tensor.produce() for name, tensor in source.tensors.items()}
    return PackedModel({layer.name: layer for layer in layers}, tensors, source.tied, source.metadata)


def pack_to_file(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
    float_dtype: FloatDtype | None = None,
    compress: Literal["zstd"] | None = None,
) -> Sizes:
    """Write `convert(model)` to a file layer by layer, atomically.

    Raises what `convert` raises, and FileError. Memory beyond the model is bounded by what quantising its
    largest layer takes.
    """
    source = packing_source(model, metadata=metadata, codec=codec, float_dtype=float_dtype)
    return write_packed(path, source, compress=compress)


def packing_source(
    model: nn.Module,
    *,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
    float_dtype: FloatDtype | None = None,
    weights: Mapping[str, Tensor] | None = None,
    seen: Callable[[PackedLayer, Tensor], None] | None = None,
) -> ModelSource:
    """What `convert` packs, each piece produced when it is asked for.

    `weights`, by names of the state dictionary, are the tensors of a model on the meta device; a tied one may
    go by any of its names. `seen` is called with each layer as it is packed, and its latent weight.
    """
    if float_dtype not in (None, *_FLOATS):
        raise UsageError(f"there is no float dtype {float_dtype!r}; valid: {', '.join(_FLOATS)}")
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
    found = _fetchers(state, weights or {})
    tensors = {
        name: _tensor_source(name, found[name], float_dtype)
        for name in state
        if name not in tied and name not in layers
    }
    half = float_dtype in ("fp16", "bf16")
    sources = [
        _layer_source(name, layer, wanted, half, found[_weight_name(name)], seen) for name, layer in packed
    ]
    return ModelSource(sources, tensors, tied, dict(metadata or {}))


def _weight_name(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _holds(codec: Codec, layer: QATLayer) -> bool:
    return set(layer.quantizer.levels) <= set(codec.levels)


def _layer_source(
    name: str,
    layer: QATLayer,
    wanted: Codec | None,
    half: bool,
    latent: Callable[[], Tensor],
    seen: Callable[[PackedLayer, Tensor], None] | None,
) -> LayerSource:
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
        weight = latent()
        quantized = _quantized(layer, weight, name)
        short = half and harmless(weight, quantized)
        scale = quantized.scale.detach().float().cpu().numpy()
        made = PackedLayer(
            **vars(spec) | {"scale_type": "F16" if short else "F32"},
            codes=codec.pack(quantized.codes.cpu().numpy()),
            scale=as_fp16(scale) if short else scale,
        )
        if seen is not None:
            seen(made, weight)
        return made

    return LayerSource(spec, produce)


@torch.no_grad()
def _quantized(layer: QATLayer, weight: Tensor, name: str) -> QuantizedTensor:
    """The codes and scales of a layer, some rows at a time where rows do not depend on each other."""
    alone = getattr(getattr(layer.quantizer, "options", None), "granularity", "") == "channel"
    if layer.quantizer_parameters and weight is layer.weight:  # learned
        _check_finite(weight, name)
        return layer.quantized_weight()
    parts = []
    for rows in row_blocks(weight, whole=not alone):
        block = weight.detach()[rows].flatten(1).float()
        _check_finite(block, name)
        parts.append(layer.quantizer.quantize(block, **layer.quantizer.parameters(block)))
    return QuantizedTensor(
        torch.cat([part.codes for part in parts]), torch.cat([p.scale for p in parts]), parts[0].group_size
    )


def _check_finite(weight: Tensor, name: str) -> None:
    if not torch.isfinite(weight).all():
        raise UsageError(f"layer {name!r} has weights that are not finite; go back to an earlier checkpoint")


def row_blocks(weight: Tensor, *, whole: bool = False) -> list[slice]:
    """Ranges of rows of at most some millions of weights, at least one range."""
    rows = max(1, len(weight))
    step = rows if whole else max(1, _BLOCK * rows // max(1, weight.numel()))
    return [slice(start, start + step) for start in range(0, rows, step)]


@torch.no_grad()
def harmless(weight: Tensor, quantized: QuantizedTensor) -> bool:
    """Whether scales in fp16 move the weight by at most half of what quantising it has moved it already.

    Both in Frobenius norms over the whole layer: rows that hardly count may lose their scale's last bits.
    """
    own = moved = 0.0
    short = quantized.scale.half().float()
    for rows in row_blocks(weight):
        codes, group = quantized.codes[rows], quantized.group_size
        exact = QuantizedTensor(codes, quantized.scale[rows], group).dequantize()
        own += float((weight[rows].flatten(1).float() - exact).square().sum(dtype=torch.float64))
        rounded = QuantizedTensor(codes, short[rows], group).dequantize()
        moved += float((rounded - exact).square().sum(dtype=torch.float64))
    return 4 * moved <= own


def _group_size(layer: QATLayer) -> int:
    """The quantizer's group size, which only a quantised tensor tells: that of one row of zeros."""
    row = torch.zeros(
        1, layer.weight[0].numel(), device="cpu" if layer.weight.is_meta else layer.weight.device
    )
    return layer.quantizer.quantize(row, **layer.quantizer.parameters(row)).group_size


def _fetchers(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    """What gives each tensor of the state: its content in `weights`, or else itself."""
    held = {id(tensor): name for name, tensor in state.items() if name in weights}
    if lacking := [n for n, tensor in state.items() if tensor.is_meta and id(tensor) not in held]:
        raise UsageError(f"{lacking[0]!r} is on the meta device and among no weights given")
    given = {name: (weights, held[id(t)]) if id(t) in held else (state, name) for name, t in state.items()}
    return {name: partial(source.__getitem__, key) for name, (source, key) in given.items()}


def _tensor_source(name: str, fetch: Callable[[], Tensor], float_dtype: FloatDtype | None) -> TensorSource:
    like = fetch()
    dtype, shape = _stored(like.dtype, float_dtype), tuple(like.shape)

    def produce() -> NDArray[Any]:
        tensor = fetch().detach()
        stored = tensor.to("cpu", dtype, copy=True)
        if dtype == torch.float16 and (stored.isinf() & ~tensor.cpu().isinf()).any():
            raise UsageError(f"{name!r} holds numbers that fp16 does not; take --float-dtype bf16")
        if dtype == torch.bfloat16:  # NumPy knows it from ml_dtypes, torch does not know that
            return np.asarray(stored.view(torch.int16).numpy().view(ml_dtypes.bfloat16), order="C")
        array: NDArray[Any] = stored.numpy()
        return np.asarray(array, order="C")  # ascontiguousarray would make a 0-d array 1-d

    kind = ml_dtypes.bfloat16 if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype
    return TensorSource(TensorSpec.of(kind, shape), produce)


def _stored(dtype: torch.dtype, wanted: FloatDtype | None) -> torch.dtype:
    """The type that a tensor of `dtype` is stored in."""
    if not dtype.is_floating_point:
        return dtype
    if wanted is not None:
        return _FLOATS[wanted]
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
