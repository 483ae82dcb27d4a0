"""Swapping layers for fake-quantised ones, and nothing else."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.options import nearest
from hybridkit.quant.layers import (
    QATConv1d,
    QATConv2d,
    QATEmbedding,
    QATLayer,
    QATLinear,
    WeightQuantizer,
    qat_layers,
)
from hybridkit.quant.protocol import Activations, Quantizer
from hybridkit.registry import registry

logger = logging.getLogger(__name__)

QuantizerSpec = str | Mapping[str, Any]
FULL_PRECISION = "fp32"

_SWAPS: dict[type[nn.Module], type[QATLayer]] = {
    nn.Linear: QATLinear,
    nn.Conv1d: QATConv1d,
    nn.Conv2d: QATConv2d,
    nn.Embedding: QATEmbedding,
}


def prepare_qat(
    model: nn.Module,
    *,
    quantizer: str | Quantizer = "ternary-absmean",
    options: Mapping[str, Any] | None = None,
    activations: Activations = "int8",
    quantize_all: bool = False,
    overrides: Mapping[str, QuantizerSpec] | None = None,
    ramp_steps: int = 0,
    example_inputs: Sequence[Tensor] | None = None,
) -> nn.Module:
    """Make `model` train with quantised weights: in place, and returned.

    Linear, Conv1d and Conv2d layers are swapped for fake-quantised ones that share their parameters. The
    last Linear and the embeddings (and a layer whose weight is tied to either) stay in full precision
    unless `quantize_all`. The last Linear is the last to run on `example_inputs` where they are given, else
    the last in the order of definition. Subclasses of these layers, and transposed convolutions, stay.

    quantizer: a registered name, `module:attribute` or a quantizer; options: its options, by name.
    activations: `int8` quantises every layer's input as well (per token, per sample), `float` does not.
    overrides: layer name pattern (`blocks.*.mlp.*`) -> quantizer name, table {"quantizer": name, option:
        value, ...} or "fp32"; the last pattern that matches wins, and it reaches layers that the policy
        would leave in full precision.
    ramp_steps: where not 0, layers start in full precision; the caller moves them with `set_ramp`.

    Raises UsageError if nothing is to be quantised, a pattern matches no layer, the model is prepared
    already, or a weight is not finite.
    """
    if qat_layers(model):
        raise UsageError("the model is prepared for quantisation-aware training already")
    if activations not in ("int8", "float"):
        raise UsageError(f"activations {activations!r} are neither 'int8' nor 'float'")
    chosen = _choose(model, _as_spec(quantizer, options), quantize_all, overrides or {}, example_inputs)
    if not chosen:
        raise UsageError("nothing to quantise: no Linear, Conv1d or Conv2d besides the last Linear")
    made: dict[int, WeightQuantizer] = {}
    for name, (layer, spec) in chosen.items():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if not bool(torch.isfinite(weight).all()):
            raise UsageError(f"layer {name!r} has weights that are not finite")
        if id(weight) not in made:
            ramp = 0.0 if ramp_steps else 1.0
            label, instance = _create(spec)
            made[id(weight)] = WeightQuantizer(label, instance, weight, activations, ramp).to(weight.device)
        model = _replace(model, layer, _fake(layer, made[id(weight)]))
    return model


def float_twin(model: nn.Module) -> nn.Module:
    """A copy of a prepared model with plain layers: what its latent weights compute in full precision."""
    model = copy.deepcopy(model)
    for layer in qat_layers(model).values():
        plain = next(c for c, q in _SWAPS.items() if type(layer) is q)
        del layer.weight_quantizer
        layer.__class__ = plain  # type: ignore[assignment]
    return model


def _as_spec(quantizer: str | Quantizer, options: Mapping[str, Any] | None) -> Any:
    return {"quantizer": quantizer, **(options or {})}


def _create(spec: Any) -> tuple[str, Quantizer]:
    table = {"quantizer": spec} if isinstance(spec, str) else dict(spec)
    quantizer = table.pop("quantizer", None)
    if quantizer is None:
        raise UsageError(f"the override {spec!r} names no quantizer")
    if isinstance(quantizer, str):
        return quantizer, registry().create("quantizer", quantizer, table)
    return type(quantizer).__name__, quantizer


def _choose(
    model: nn.Module,
    default: Any,
    quantize_all: bool,
    overrides: Mapping[str, QuantizerSpec],
    example_inputs: Sequence[Tensor] | None,
) -> dict[str, tuple[nn.Module, Any]]:
    """The layers to quantise, by name, each with its quantizer's description."""
    layers = {name: m for name, m in model.named_modules() if type(m) in _SWAPS}
    for name, module in model.named_modules():
        if isinstance(module, tuple(_SWAPS)) and name not in layers:
            logger.warning("layer %s stays in full precision: %s is a subclass", name, type(module).__name__)
    kept = set() if quantize_all else _kept_weights(model, layers, example_inputs)
    chosen: dict[str, tuple[nn.Module, Any]] = {}
    for name, layer in layers.items():
        spec = None if id(layer.weight) in kept else default
        for pattern, override in overrides.items():
            if fnmatchcase(name, pattern):
                spec = None if override == FULL_PRECISION else override
        if spec is not None:
            chosen[name] = (layer, spec)
    for pattern in overrides:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise UsageError(f"the pattern {pattern!r} matches no layer; {nearest(pattern, layers)}")
    return chosen


def _kept_weights(
    model: nn.Module, layers: Mapping[str, nn.Module], example_inputs: Sequence[Tensor] | None
) -> set[int]:
    kept = {id(layer.weight) for layer in layers.values() if isinstance(layer, nn.Embedding)}
    linears = [layer for layer in layers.values() if isinstance(layer, nn.Linear)]
    if example_inputs is not None:
        linears = _in_order_of_execution(model, linears, example_inputs)
    if linears:
        kept.add(id(linears[-1].weight))
    return kept


def _in_order_of_execution(
    model: nn.Module, layers: Sequence[nn.Module], inputs: Sequence[Tensor]
) -> list[nn.Module]:
    ran: list[nn.Module] = []
    hooks = [layer.register_forward_hook(lambda m, *_: ran.append(m)) for layer in layers]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return ran


def _fake(layer: nn.Module, weight_quantizer: WeightQuantizer) -> QATLayer:
    fake = copy.copy(layer)  # a shallow copy: parameters, hooks and attributes are the layer's own
    fake._modules = dict(layer._modules)
    fake.__class__ = _SWAPS[type(layer)]
    assert isinstance(fake, QATLayer)
    fake.weight_quantizer = weight_quantizer
    return fake


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    if model is old:
        return new
    for module in model.modules():
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new
    return model
