"""Quantising after the fact: without training, a layer at a time, and the error that costs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from hybridkit.calls import Inputs
from hybridkit.errors import UsageError
from hybridkit.packing.activations import Activations
from hybridkit.packing.codecs import Codec
from hybridkit.packing.model import LayerSource, ModelSource, PackedLayer, PackedModel, Sizes, write_packed
from hybridkit.quant.allocation import allocate, input_squares, ternary_of, with_layers
from hybridkit.quant.config import Embeddings, QuantConfig, QuantizerSpec, config_from
from hybridkit.quant.convert import (
    FloatDtype,
    Seen,
    layer_source,
    packing_source,
    quantize_rows,
    row_blocks,
    tensor_source,
    tied_names,
    wanted_codec,
    with_config,
)
from hybridkit.quant.kinds import Layer, describe_weights
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.plan import LayerChoice, LeftAlone, left_alone, plan_layers, select
from hybridkit.quant.prepare import prepared
from hybridkit.quant.protocol import QuantizedTensor, Statistics, quantize_weight, takes_statistics
from hybridkit.quant.statistics import layer_statistics

AFTERWARDS: Final = QuantConfig(weights="ternary-mse", activations="float")

# A network, or the tensors of one by their names in its state dictionary, read when they are asked for.
Source = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What quantising one layer did.

    relative_error: ||W - Q|| / ||W||, in Frobenius norms; None where codes took the weight's place before.
    """

    name: str
    shape: tuple[int, ...]
    quantizer: str
    bits: float
    zero_fraction: float
    relative_error: float | None


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """The packed model, a row per quantised layer, and what stays in full precision, with the reason."""

    packed: PackedModel
    layers: tuple[LayerReport, ...]
    left_alone: tuple[LeftAlone, ...] = ()

    @property
    def sizes(self) -> Sizes:
        """Bytes, bits per weight and ratios of the packed model as a file."""
        return self.packed.sizes()


@dataclass(frozen=True, slots=True)
class FileReport:
    """The sizes of the file that was written, and otherwise what QuantizationReport says."""

    sizes: Sizes
    layers: tuple[LayerReport, ...]
    left_alone: tuple[LeftAlone, ...]


def quantize(model: Source, config: QuantConfig | None = None, **how: Any) -> QuantizationReport:
    """Quantise and pack `model` without training it; the model itself is not changed, nor its weights copied.

    model: a network, or a mapping of tensors by name, such as `open_tensors` gives: its layers are
    then those that `layers=` describes (by default `describe_weights`). config: how; by default ternary-mse
    with float activations. `how` are the keyword arguments of `quantizing_source`. A model that was prepared
    with `prepare_qat_` is packed as it trained; then only `metadata`, `codec` and `float_dtype` apply.

    Raises UsageError where `select`, `allocate` or `convert` do.
    """
    work = quantizing_source(model, config, **how)
    source = work.source
    packed = PackedModel(
        {layer.spec.name: layer.produce() for layer in source.layers},
        {name: tensor.produce() for name, tensor in source.tensors.items()},
        source.tied,
        source.metadata,
    )
    return QuantizationReport(packed, tuple(work.rows), work.left_alone)


def quantize_to_file(
    model: Source,
    path: str | os.PathLike[str],
    config: QuantConfig | None = None,
    *,
    compress: Literal["zstd"] | None = None,
    **how: Any,
) -> FileReport:
    """As `quantize`, into a file: each layer is quantised, written and forgotten. Raises FileError too."""
    work = quantizing_source(model, config, **how)
    sizes = write_packed(path, work.source, compress=compress)
    return FileReport(sizes, tuple(work.rows), work.left_alone)


@dataclass(frozen=True, slots=True)
class Storage:
    """How a packed model is stored: see `convert`."""

    metadata: Mapping[str, Any] | None
    codec: str | None
    float_dtype: FloatDtype | None

    @property
    def half(self) -> bool:
        """Whether scales may be fp16."""
        return self.float_dtype in ("fp16", "bf16")


@dataclass(frozen=True, slots=True)
class Work:
    """A packed model to be produced; each layer that is produced adds its row."""

    source: ModelSource
    rows: list[LayerReport]
    left_alone: tuple[LeftAlone, ...]


def quantizing_source(
    model: Source,
    config: QuantConfig | None = None,
    *,
    quantizer: QuantizerSpec | None = None,
    options: Mapping[str, Any] | None = None,
    activations: Activations | None = None,
    quantize_all: bool = False,
    embeddings: Embeddings | None = None,
    target_bits: float | None = None,
    overrides: Mapping[str, QuantizerSpec] | None = None,
    example_inputs: Inputs | None = None,
    statistics: Callable[[str], Statistics | None] | None = None,
    layers: Sequence[Layer] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
    float_dtype: FloatDtype | None = None,
) -> Work:
    """The work that `quantize` does, layer by layer.

    `quantizer` to `overrides` build a QuantConfig where none is given. `example_inputs`, the model's
    arguments, show which Linear runs last, weigh the errors under `target_bits`, and give quantizers that
    look at them their statistics, one run for each such layer; or else `statistics(layer name)` does.
    `weights`, by name, are those of a network on the meta device; a tied one may go by any of its names.
    """
    storage = Storage(metadata, codec, float_dtype)
    if isinstance(model, nn.Module) and qat_layers(model):
        return _as_trained(model, storage)
    config = config_from(
        config,
        AFTERWARDS,
        quantizer=quantizer,
        options=options,
        activations=activations,
        quantize_all=quantize_all,
        embeddings=embeddings,
        target_bits=target_bits,
        overrides=overrides,
    )
    if config.insert_norms:
        raise UsageError("inserted norms have to be trained: prepare_qat, or hybridkit train --insert-norms")
    if isinstance(model, nn.Module):
        own: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
        state = own if weights is None else Filled(own, weights)
        network = model

        def plan(how: QuantConfig) -> list[LayerChoice]:
            return plan_layers(network, how, example_inputs=example_inputs)

        def squares(plans: Sequence[LayerChoice]) -> dict[str, Tensor]:
            return input_squares(network, plans, example_inputs)

        statistics = statistics or partial(layer_statistics, network, example_inputs)
    else:
        own = state = model
        known = layers if layers is not None else describe_weights({n: meta(model, n).shape for n in model})

        def plan(how: QuantConfig) -> list[LayerChoice]:
            return select(known, how)

        def squares(plans: Sequence[LayerChoice]) -> dict[str, Tensor]:
            return {}

    plans = plan(replace(config, embeddings=None) if config.target_bits is not None else config)
    if config.target_bits is not None:
        ternary = ternary_of(config)
        bits = allocate(
            plans, state.__getitem__, config.target_bits, ternary=ternary, importance=squares(plans)
        )
        config = with_layers(config, bits)
        plans = plan(config)
    tied = tied_names(own, [p.layer.weight for p in plans if p.quantizer]) if own is not model else {}
    return _work(state, tied, plans, config, statistics or _nothing_known, storage)


class Filled(Mapping[str, Tensor]):
    """The tensors of a network's state `own`, with the content that `weights` hold; read when asked for."""

    def __init__(self, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        held = {id(tensor): name for name, tensor in own.items() if name in weights}
        if lacking := [name for name, tensor in own.items() if id(tensor) not in held]:
            raise UsageError(
                f"the weights lack {lacking[0]!r}, which the network has; is it the same network?"
            )
        self._weights, self._names = weights, {name: held[id(tensor)] for name, tensor in own.items()}
        for name, tensor in own.items():
            if (shape := self.meta(name).shape) != tensor.shape:
                shapes = f"{list(shape)}, the network's is {list(tensor.shape)}"
                raise UsageError(f"{name!r} among the weights is {shapes}")

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[self._names[name]]

    def meta(self, name: str) -> Tensor:
        """The type and shape of a tensor."""
        return meta(self._weights, self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def meta(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of the type and shape of the one called `name`: `weights.meta(name)`, or itself."""
    look: Callable[[str], Tensor] = getattr(weights, "meta", weights.__getitem__)
    return look(name)


def _work(
    state: Mapping[str, Tensor],
    tied: Mapping[str, str],
    plans: Sequence[LayerChoice],
    config: QuantConfig,
    statistics: Callable[[str], Statistics | None],
    storage: Storage,
) -> Work:
    packed: dict[str, LayerChoice] = {}
    for plan in plans:
        if plan.quantizer is not None:
            packed.setdefault(plan.layer.weight, plan)  # the first of those that share a weight
    wanted = wanted_codec(storage.codec, [plan.quantizer for plan in packed.values() if plan.quantizer])
    rows: list[LayerReport] = []
    sources = [
        _source(plan, state, config.activations, wanted, statistics, storage.half, rows)
        for plan in packed.values()
    ]
    tensors = {
        name: tensor_source(
            name, meta(state, name), partial(state.__getitem__, name), float_dtype=storage.float_dtype
        )
        for name in state
        if name not in packed and name not in tied
    }
    model = ModelSource(sources, tensors, tied, with_config(storage.metadata, config))
    return Work(model, rows, left_alone(plans))


def _source(
    plan: LayerChoice,
    state: Mapping[str, Tensor],
    activations: Activations,
    wanted: Codec | None,
    statistics: Callable[[str], Statistics | None],
    half: bool,
    rows: list[LayerReport],
) -> LayerSource:
    quantizer, layer = plan.quantizer, plan.layer
    assert quantizer is not None

    @torch.no_grad()
    def quantized() -> tuple[Tensor, QuantizedTensor]:
        weight = layer.oriented(state[layer.weight])
        if not takes_statistics(quantizer):
            return weight, quantize_rows(quantizer, weight, layer.name)
        matrix = weight.flatten(1).float()
        if not torch.isfinite(matrix).all():
            raise UsageError(f"layer {layer.name!r} has weights that are not finite")
        return weight, quantize_weight(quantizer, matrix, statistics(layer.name))

    return layer_source(
        quantizer,
        quantized,
        wanted,
        half=half,
        seen=_noting(rows),
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        activations=activations,
        quantizer=plan.quantizer_name,
    )


def _as_trained(model: nn.Module, storage: Storage) -> Work:
    rows: list[LayerReport] = []
    source = packing_source(
        model,
        metadata=storage.metadata,
        codec=storage.codec,
        float_dtype=storage.float_dtype,
        seen=_noting(rows),
    )
    done = prepared(model)
    return Work(source, rows, done.left_alone if done else ())


def _noting(rows: list[LayerReport]) -> Seen:
    """What adds a row to `rows` for a layer that was packed."""
    return lambda packed, weight: rows.append(_report(packed, weight))


def _nothing_known(name: str) -> None:
    return None


def _report(layer: PackedLayer, weight: Tensor) -> LayerReport:
    error = _relative_error(layer, weight) if weight.is_floating_point() else None
    return LayerReport(layer.name, layer.shape, layer.quantizer, layer.bits, layer.zero_fraction, error)


def _relative_error(layer: PackedLayer, weight: Tensor) -> float:
    error = size = 0.0
    for rows in row_blocks(weight):
        latent = weight.detach()[rows].float().cpu()
        error = math.hypot(error, float(torch.dist(latent, torch.from_numpy(layer.dequantize(rows)))))
        size = math.hypot(size, float(torch.linalg.vector_norm(latent)))
    return error / size if size > 0 else error
