"""Which layers of a model are quantised, how, and why the others are not."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hybridkit.errors import UsageError
from hybridkit.options import nearest
from hybridkit.quant.layers import LAYERS, QATLayer
from hybridkit.quant.observe import observe
from hybridkit.quant.protocol import Quantizer
from hybridkit.registry import registry

FP32 = "fp32"

# A quantizer's name, {"quantizer": name, option: value, ...}, "fp32" for none, or an instance.
QuantizerSpec = str | Mapping[str, Any] | Quantizer


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer and the quantizer it gets, or None and the reason."""

    name: str
    layer: nn.Module
    quantizer: Quantizer | None
    quantizer_name: str = FP32
    reason: str = ""


def make_quantizer(
    spec: QuantizerSpec, options: Mapping[str, Any] | None = None
) -> tuple[Quantizer | None, str]:
    """The quantizer that `spec` means and its name; (None, "fp32") for full precision.

    `options` go with a bare name. Raises UsageError for a name or an option that does not exist.
    """
    spec = _normal(spec, options)
    if spec == FP32:
        return None, FP32
    if isinstance(spec, Mapping):
        values = dict(spec)
        if not isinstance(name := values.pop("quantizer", None), str):
            raise UsageError(f"{dict(spec)!r} names no quantizer; say {{'quantizer': 'nbit', 'bits': 4}}")
        return cast(Quantizer, registry().create("quantizer", name, values)), name
    if isinstance(spec, str | type) or not hasattr(spec, "fake_quantize"):
        raise UsageError(f"a quantizer is a name, a mapping with a name, or an instance, not {spec!r}")
    return spec, type(spec).__name__


def _normal(spec: QuantizerSpec, options: Mapping[str, Any] | None = None) -> QuantizerSpec:
    """`spec` in the one form in which equal ones compare equal, its name's options included."""
    if isinstance(spec, str) and spec != FP32:
        return {"quantizer": spec, **(options or {})}
    if options:
        raise UsageError("quantizer options go with a quantizer's name")
    return dict(spec) if isinstance(spec, Mapping) else spec


def plan_layers(
    model: nn.Module,
    *,
    quantizer: QuantizerSpec = "ternary-absmean",
    options: Mapping[str, Any] | None = None,
    quantize_all: bool = False,
    overrides: Mapping[str, QuantizerSpec] | None = None,
    example_inputs: Sequence[Tensor] | None = None,
) -> list[LayerPlan]:
    """The quantizer of every weight layer of `model`, in the order of registration; each layer once.

    The last Linear, the embeddings and what shares a weight with them stay in full precision unless
    `quantize_all`. The last Linear is the last to run on `example_inputs` (the model's arguments), without
    them the last to be registered. `overrides` maps patterns of layer names (fnmatch) to quantizers and wins
    over all of it; of several patterns that match, the last one counts. Raises UsageError where a pattern
    matches no layer that can be quantised, where layers with one weight would get different quantizers, or
    where nothing is left.
    """
    if any(isinstance(module, QATLayer) for module in model.modules()):
        raise UsageError("the model holds fake-quantised layers already; prepare a model only once")
    aliases: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        aliases[module].append(name)
    obstacles = {module: obstacle for module in aliases if (obstacle := _obstacle(module))}
    possible = [module for module in aliases if type(module) in LAYERS and module not in obstacles]
    exempt = {} if quantize_all else _exempt(model, possible, example_inputs)
    default = _normal(quantizer, options)
    chosen: dict[nn.Module, QuantizerSpec] = {m: FP32 if m in exempt else default for m in possible}
    for pattern, spec in (overrides or {}).items():
        matched = [m for m in possible if any(fnmatch.fnmatchcase(name, pattern) for name in aliases[m])]
        if not matched:
            names = [name for m in possible for name in aliases[m]]
            raise UsageError(f"override {pattern!r} matches no layer; {nearest(pattern, names)}")
        chosen |= dict.fromkeys(matched, _normal(spec))
    _check_tied(chosen, aliases)
    plans = []
    for module, names in aliases.items():
        if module in obstacles:
            plans.append(LayerPlan(names[0], module, None, reason=obstacles[module]))
        elif module in chosen:
            instance, label = make_quantizer(chosen[module])
            reason = "" if instance else exempt.get(module, "asked for full precision")
            plans.append(LayerPlan(names[0], module, instance, label, reason))
    if not any(plan.quantizer for plan in plans):
        raise UsageError(_nothing(plans))
    return plans


def exempt_layers(model: nn.Module, example_inputs: Sequence[Tensor] | None = None) -> list[str]:
    """The layers that could be quantised and stay in full precision unless `quantize_all` says otherwise."""
    names = {module: name for name, module in model.named_modules()}
    possible = [m for m in names if type(m) in LAYERS and not _obstacle(m)]
    exempt = _exempt(model, possible, example_inputs)
    return [name for module, name in names.items() if module in exempt]


def _obstacle(module: nn.Module) -> str:
    """Why a weight layer cannot be quantised; empty where it can, or is none."""
    if isinstance(module, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads its weights past any layer"
    if not isinstance(module, tuple(LAYERS)):
        return ""
    if type(module) not in LAYERS:
        return f"{type(module).__name__} is a subclass with a forward of its own"
    if "weight" not in module._parameters:
        return "its weight is computed (weight_norm or a parametrisation); remove that first"
    if is_lazy(module.get_parameter("weight")):
        return "its weight has no shape yet; run the model once first"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm changes the weight in the forward"
    return ""


def _exempt(
    model: nn.Module, layers: Sequence[nn.Module], example_inputs: Sequence[Tensor] | None
) -> dict[nn.Module, str]:
    """The layers that stay in full precision by default, with the reason."""
    exempt: dict[nn.Module, str] = {m: "embedding" for m in layers if isinstance(m, nn.Embedding)}
    linears: list[nn.Module] = [m for m in layers if isinstance(m, nn.Linear)]
    if example_inputs is not None:
        linears = _as_they_run(model, linears, example_inputs)
    if linears:
        exempt[linears[-1]] = "last Linear"
    weights = {id(m.weight) for m in exempt}
    tied = {m: "shares its weight with one that is not quantised" for m in layers if id(m.weight) in weights}
    return tied | exempt


def _as_they_run(
    model: nn.Module, layers: Iterable[nn.Module], example_inputs: Sequence[Tensor]
) -> list[nn.Module]:
    """The layers in the order in which one evaluation calls them."""
    order: list[nn.Module] = []
    observe(model, layers, example_inputs, lambda layer, _: order.append(layer))
    return order


def _check_tied(chosen: Mapping[nn.Module, QuantizerSpec], aliases: Mapping[nn.Module, list[str]]) -> None:
    first: dict[int, nn.Module] = {}
    for module, spec in chosen.items():
        other = first.setdefault(id(module.weight), module)
        if spec != chosen[other]:
            raise UsageError(
                f"{aliases[other][0]!r} and {aliases[module][0]!r} share one weight; "
                "give both the same quantizer"
            )


def _nothing(plans: Iterable[LayerPlan]) -> str:
    kept = ", ".join(f"{plan.name or 'the model'} ({plan.reason})" for plan in plans)
    if not kept:
        return "nothing to quantise: the model has no Linear, Conv1d, Conv2d or Embedding layer"
    return f"nothing to quantise: {kept}; quantize_all also takes the last Linear and embeddings"
