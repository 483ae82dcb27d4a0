"""From a model with fake-quantised layers to packed weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.packing.codecs import Codec, holds_levels
from hybridkit.packing.codecs import codec as codec_called
from hybridkit.packing.layers import as_fp16
from hybridkit.packing.model import (
    LayerSource,
    LayerSpec,
    ModelSource,
    PackedLayer,
    PackedModel,
    TensorSource,
    TensorSpec,
)
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.groups import InGroups
from hybridkit.quant.layers import QATLayer, full_precision_state, qat_layers
from hybridkit.quant.prepare import prepared
from hybridkit.quant.protocol import QuantizedTensor, Quantizer, codec_of

FloatDtype = Literal["fp32", "fp16", "bf16"]
Seen = Callable[[PackedLayer, Tensor], None]
_FLOATS: Final[dict[str, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
FP16_STEP: Final = 2.0**-11  # how far fp16 moves a number at most, relative to it
_BLOCK: Final = 1 << 20  # weights quantised at a time: bounds what that takes


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
    layers whose levels it holds in no more bits (`base3` stores ternary ones in 1.6), others take their
    default.
    The metadata also hold `quantization`, the QuantConfig as JSON.

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


def packing_source(
    model: nn.Module,
    *,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
    float_dtype: FloatDtype | None = None,
    seen: Seen | None = None,
) -> ModelSource:
    """What `convert` packs, each piece produced when it is asked for.

    `seen` is called with each layer as it is packed, and its latent weight or, int8, the codes in its place.
    """
    layers = {_weight_name(name): (name, layer) for name, layer in qat_layers(model).items()}
    if not layers:
        raise UsageError("the model has no quantised layer; call prepare_qat first, or use quantize")
    state = full_precision_state(model)
    tied = tied_names(state, layers)
    packed = {name: layer for weight, (name, layer) in layers.items() if weight not in tied}
    wanted = wanted_codec(codec, [layer.quantizer for layer in packed.values()])
    tensors = {
        name: tensor_source(name, tensor, float_dtype=float_dtype)
        for name, tensor in state.items()
        if name not in tied and name not in layers
    }
    half = float_dtype in ("fp16", "bf16")
    sources = [_layer_source(name, layer, wanted, half, seen) for name, layer in packed.items()]
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
    """`metadata` with what the configuration says beyond its defaults as `quantization`, if it has names."""
    written = {}
    if config is not None:
        with contextlib.suppress(UsageError):  # a quantizer that is an object has no name
            usual = QuantConfig().to_json()
            said = {name: value for name, value in config.to_json().items() if value != usual[name]}
            written["quantization"] = said
    return {**written, **(metadata or {})}


def _weight_name(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _holds(codec: Codec, quantizer: Quantizer) -> bool:
    return codec == codec_of(quantizer) or holds_levels(codec, quantizer.levels)


def layer_source(
    made_by: Quantizer,
    quantized: Callable[[], tuple[Tensor, QuantizedTensor]],
    wanted: Codec | None,
    *,
    half: bool = False,
    seen: Seen | None = None,
    **known: Any,
) -> LayerSource:
    """A layer that is packed when its turn comes.

    `quantized` gives its latent weight, outputs first, or the codes that took its place, and what became of
    it. `half`: scales in fp16 where that is harmless. `known` are the other fields of its LayerSpec.
    """
    codec = codec_of(made_by)
    if wanted and _holds(wanted, made_by) and wanted.bits_per_weight <= codec.bits_per_weight:
        codec = wanted
    # Only a quantised tensor tells the group size and whether there are offsets: that of one row of zeros.
    row = torch.zeros(1, math.prod(known["shape"][1:]))
    form = made_by.quantize(row, **made_by.parameters(row))
    spec = LayerSpec(
        codec=codec.name,
        bits=made_by.bits,
        group_size=form.group_size,
        has_offset=form.offset is not None,
        **known,
    )
    said = {field.name: getattr(spec, field.name) for field in fields(LayerSpec)}

    def produce() -> PackedLayer:
        weight, made = quantized()
        short = half and harmless(weight, made, made_by.levels)
        packed = PackedLayer(
            **said | {"scale_type": "F16" if short else "F32"},
            codes=codec.pack(made.codes.cpu().numpy()),
            scale=_numbers(made.scale, short),
            offset=None if made.offset is None else _numbers(made.offset, short),
        )
        if seen is not None:
            seen(packed, weight)
        return packed

    return LayerSource(spec, produce)


def _numbers(scale: Tensor, short: bool) -> NDArray[np.float32]:
    """Scales or offsets as a packed layer has them; `short`: as fp16 holds them."""
    numbers: NDArray[np.float32] = scale.detach().float().cpu().numpy()
    return as_fp16(numbers) if short else numbers


def _layer_source(
    name: str, layer: QATLayer, wanted: Codec | None, half: bool, seen: Seen | None
) -> LayerSource:
    if layer.ramp < 1:
        raise UsageError(
            f"layer {name!r} is on the ramp from full precision; train on (hybridkit train --resume RUN) or "
            "end it with set_ramp(model, 1)"
        )

    def quantized() -> tuple[Tensor, QuantizedTensor]:
        weight = layer.oriented_weight().detach()
        if not layer.quantizer_parameters:
            return weight, quantize_rows(layer.quantizer, weight, name)
        _check_finite(weight, name)
        return weight, layer.quantized_weight()

    def shown(packed: PackedLayer, _: Tensor) -> None:
        if seen is not None:
            seen(packed, layer.oriented_weight().detach())

    return layer_source(
        layer.quantizer,
        quantized,
        wanted,
        half=half,
        seen=shown,
        name=name,
        kind=layer.kind,
        shape=tuple(layer.oriented_weight().shape),
        activations=layer.activations,
        quantizer=layer.quantizer_name,
    )


@torch.no_grad()
def quantize_rows(quantizer: Quantizer, weight: Tensor, name: str) -> QuantizedTensor:
    """The codes and scales of a weight, outputs first, some rows at a time where they have their own scales.

    Raises UsageError where a weight is not finite; `name` is the layer's.
    """
    options = getattr(quantizer, "options", None)
    alone = isinstance(quantizer, InGroups) or getattr(options, "granularity", "") == "channel"
    parts = []
    for rows in row_blocks(weight, whole=not alone):
        block = weight[rows].flatten(1).float()
        _check_finite(block, name)
        parts.append(quantizer.quantize(block, **quantizer.parameters(block)))
    if len(parts) == 1:
        return parts[0]
    offsets = [part.offset for part in parts if part.offset is not None]
    return QuantizedTensor(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scale for part in parts]),
        parts[0].group_size,
        torch.cat(offsets) if offsets else None,
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
def harmless(weight: Tensor, quantized: QuantizedTensor, levels: Sequence[int]) -> bool:
    """Whether scales and offsets in fp16 move the weight little: by half of what quantising it has moved it.

    Or by no more than weights in fp16 would be moved. All in Frobenius norms over the whole layer: rows that
    hardly count may lose their scale's last bits. Of codes that took the weight's place nobody knows what
    moved it any more: then a step between two levels counts as if weights had been spread evenly over it, and
    each was moved by a 12th of its square.
    """
    own = moved = size = 0.0
    known = weight.is_floating_point()
    for rows in row_blocks(weight):
        part = replace(quantized, codes=quantized.codes[rows]).with_numbers(lambda numbers: numbers[rows])  # noqa: B023
        exact = part.dequantize()
        if known:
            off = weight[rows].flatten(1).float() - exact
        else:
            off = part.per_weight(part.scale) * (levels[1] - levels[0]) / math.sqrt(12)
            off = off.expand(exact.shape)
        rounded = part.with_numbers(lambda numbers: numbers.half().float()).dequantize()
        own += float(off.square().sum(dtype=torch.float64))
        moved += float((rounded - exact).square().sum(dtype=torch.float64))
        size += float(exact.square().sum(dtype=torch.float64))
    return 4 * moved <= own or moved <= FP16_STEP**2 * size


def tensor_source(
    name: str,
    known: Tensor,
    read: Callable[[], Tensor] | None = None,
    *,
    float_dtype: FloatDtype | None = None,
) -> TensorSource:
    """A tensor that is fetched when its turn comes: `known`, or what `read` gives, which is of its shape."""
    dtype, shape = _stored(known.dtype, float_dtype), tuple(known.shape)

    def produce() -> NDArray[Any]:
        tensor = (read() if read else known).detach()
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
    """The type that a tensor of `dtype` is stored in. UsageError for a `wanted` that does not exist."""
    if wanted not in (None, *_FLOATS):
        raise UsageError(f"there is no float dtype {wanted!r}; valid: {', '.join(_FLOATS)}")
    if not dtype.is_floating_point:
        return dtype
    if wanted is not None:
        return _FLOATS[wanted]
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
