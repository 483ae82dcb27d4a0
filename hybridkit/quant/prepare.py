"""Quantisation-aware training: a model's layers become fake-quantised ones."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.options import nearest
from hybridkit.quant.fast_path import close_fast_paths
from hybridkit.quant.layers import LAYERS, QATLayer, qat_layers
from hybridkit.quant.plan import QuantizerSpec, plan_layers
from hybridkit.quant.protocol import Activations

_log = logging.getLogger("hybridkit.quant")
_M = TypeVar("_M", bound=nn.Module)


def prepare_qat(
    model: _M,
    *,
    quantizer: QuantizerSpec = "ternary-absmean",
    options: Mapping[str, Any] | None = None,
    activations: Activations = "int8",
    quantize_all: bool = False,
    overrides: Mapping[str, QuantizerSpec] | None = None,
    example_inputs: Sequence[Tensor] | None = None,
) -> _M:
    """Swap the Linear, Conv1d and Conv2d layers of `model` for fake-quantised ones, in place, and return it.

    Nothing else changes: no normalisation is added, parameters stay the same objects. See `plan_layers` for
    which layers are taken, what `overrides` can say and when UsageError is raised. `options` are those of
    `quantizer`. Make the optimizer afterwards: a quantizer may add learnable parameters.
    """
    check_activations(activations)
    plans = plan_layers(
        model,
        quantizer=quantizer,
        options=options,
        quantize_all=quantize_all,
        overrides=overrides,
        example_inputs=example_inputs,
    )
    for plan in plans:
        if plan.quantizer is None or (weight := plan.layer.get_parameter("weight")).is_meta:
            continue  # what is on the meta device is looked at when its content comes
        if not torch.isfinite(weight).all():
            raise UsageError(f"layer {plan.name!r} has weights that are not finite")
    learned: dict[int, nn.ParameterDict] = {}  # by weight: tied layers learn one step
    for plan in plans:
        if plan.quantizer is None:
            _log.info("%s stays in full precision: %s", plan.name or "the model", plan.reason)
            continue
        key = id(plan.layer.weight)
        adopted = LAYERS[type(plan.layer)].adopt(
            plan.layer,
            plan.quantizer,
            activations=activations,
            name=plan.quantizer_name,
            parameters=learned.get(key),
        )
        learned[key] = adopted.quantizer_parameters
    close_fast_paths(model, QATLayer)
    return model


def float_twin(model: _M) -> _M:
    """A copy of a prepared model with its latent weights in plain full-precision layers."""
    twin = copy.deepcopy(model)
    for layer in qat_layers(twin).values():
        layer.release()
    return twin


def check_activations(activations: str) -> None:
    """Raise UsageError unless it is one of the activation modes."""
    if activations not in get_args(Activations):
        raise UsageError(
            f"no activation mode is called {activations!r}; {nearest(activations, get_args(Activations))}"
        )
