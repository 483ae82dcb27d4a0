"""Quantisation-aware training: a model's layers become fake-quantised ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from hybridkit.calls import Inputs
from hybridkit.errors import UsageError
from hybridkit.packing.activations import Activations
from hybridkit.quant.config import Embeddings, QuantConfig, QuantizerSpec, config_from
from hybridkit.quant.fast_path import close_fast_paths
from hybridkit.quant.layers import QATLayer, qat_class, qat_layers
from hybridkit.quant.norms import insert_norms_
from hybridkit.quant.plan import EMBEDDINGS, SPARED, LeftAlone, left_alone, make_quantizer, plan_layers

_M = TypeVar("_M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare_qat_` did to a model: how, and what it left alone."""

    config: QuantConfig
    left_alone: tuple[LeftAlone, ...]


def prepare_qat_(
    model: _M,
    config: QuantConfig | None = None,
    *,
    quantizer: QuantizerSpec | None = None,
    options: Mapping[str, Any] | None = None,
    activations: Activations | None = None,
    quantize_all: bool = False,
    target_bits: float | None = None,
    overrides: Mapping[str, QuantizerSpec] | None = None,
    example_inputs: Inputs | None = None,
) -> _M:
    """Turn the layers of `model` into fake-quantised ones, in place, and return it.

    Nothing else changes but for the norms that `insert_norms` asks for: parameters stay the same objects.
    `config` says how, by default `QuantConfig()`: ternary-absmean and int8 activations; the other keyword
    arguments build one (`overrides` are its `layers`). See `select` in plan.py for which layers are taken and
    when UsageError is raised; `example_inputs`, the model's arguments, show which Linear runs last and which
    layers have a norm. `prepared(model)` tells what
    was left alone. Make the optimizer afterwards: a quantizer may add learnable parameters.
    """
    config = config_from(
        config,
        QuantConfig(),
        quantizer=quantizer,
        options=options,
        activations=activations,
        quantize_all=quantize_all,
        target_bits=target_bits,
        overrides=overrides,
    )
    chosen = config
    if config.target_bits is not None:
        from hybridkit.quant.allocation import allocated

        chosen = allocated(model, config, example_inputs)
    plans = plan_layers(model, chosen, example_inputs=example_inputs)
    layers = {plan.name: model.get_submodule(plan.name) for plan in plans if plan.quantizer is not None}
    for name, layer in layers.items():
        weight = layer.get_parameter("weight")
        if not weight.is_meta and not torch.isfinite(weight).all():
            raise UsageError(f"layer {name!r} has weights that are not finite")
    if chosen.insert_norms:
        if example_inputs is None:
            raise UsageError("insert_norms needs example_inputs: they show which layers have a norm already")
        insert_norms_(layers, model, example_inputs)
    learned: dict[str, nn.ParameterDict] = {}  # by weight: tied layers learn one step
    for plan in plans:
        if plan.quantizer is None:
            continue
        adopted = qat_class(layers[plan.name]).adopt(
            layers[plan.name],
            plan.quantizer,
            activations=chosen.activations,
            compute=chosen.compute,
            name=plan.quantizer_name,
            parameters=learned.get(plan.layer.weight),
        )
        learned[plan.layer.weight] = adopted.quantizer_parameters
    close_fast_paths(model, QATLayer)
    model._hybridkit_prepared = Prepared(replace(chosen, target_bits=None), left_alone(plans))  # type: ignore[assignment]
    return model


prepare_qat = prepare_qat_


def quantize_spared_(model: nn.Module, embeddings: Embeddings) -> None:
    """Quantise the embeddings and the head of a prepared model too, which trained without that; in place.

    `embeddings`: as in QuantConfig. Raises UsageError for another value, and where none of them was left in
    full precision.
    """
    QuantConfig(embeddings=embeddings)
    done = prepared(model)
    spared = (
        {x.name: model.get_submodule(x.name) for x in done.left_alone if x.reason in SPARED} if done else {}
    )
    if done is None or not spared:
        raise UsageError("no embedding or head was left in full precision: they are packed as they trained")
    for layer in spared.values():
        quantizer, name = make_quantizer(EMBEDDINGS[embeddings])
        assert quantizer is not None
        qat_class(layer).adopt(
            layer,
            quantizer,
            activations=done.config.activations,
            compute=done.config.compute,
            name=name,
        )
    rest = tuple(x for x in done.left_alone if x.name not in spared)
    model._hybridkit_prepared = Prepared(replace(done.config, embeddings=embeddings), rest)  # type: ignore[assignment]


def prepared(model: nn.Module) -> Prepared | None:
    """What `prepare_qat_` did to this model, or None where it did nothing."""
    found: Prepared | None = getattr(model, "_hybridkit_prepared", None)
    return found


def full_precision_copy(model: _M) -> _M:
    """A copy of a prepared model with its latent weights in plain full-precision layers."""
    plain = copy.deepcopy(model)
    plain.__dict__.pop("_hybridkit_prepared", None)
    for layer in qat_layers(plain).values():
        layer.release()
    return plain
