"""Which layers are quantised, how, and why the others are not: decided from descriptions of layers alone."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from torch import nn

from hybridkit.calls import Inputs, watch
from hybridkit.errors import UsageError
from hybridkit.options import nearest
from hybridkit.quant.config import (
    FP32,
    Channel,
    Embeddings,
    Granularity,
    QuantConfig,
    QuantizerSpec,
    parse_granularity,
)
from hybridkit.quant.groups import with_granularity
from hybridkit.quant.kinds import Layer, describe
from hybridkit.quant.layers import QATLayer
from hybridkit.quant.protocol import Quantizer
from hybridkit.registry import registry


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """One layer and the quantizer it gets, or None and the reason."""

    layer: Layer
    quantizer: Quantizer | None
    quantizer_name: str = FP32
    reason: str = ""

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.layer.name


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """A layer, or a parameter of two dimensions or more, that stays in full precision, and why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str


def left_alone(plans: Iterable[LayerChoice]) -> tuple[LeftAlone, ...]:
    """What stays in full precision."""
    return tuple(
        LeftAlone(p.name, p.layer.kind, p.layer.shape, p.reason) for p in plans if p.quantizer is None
    )


_TIED: Final = "shares its weight with one that is not quantised"
SPARED: Final = ("embedding", "last Linear", _TIED)  # reasons of layers that could be quantised

EMBEDDINGS: Final[Mapping[Embeddings, QuantizerSpec]] = {
    8: {"quantizer": "nbit", "bits": 8},
    4: {"quantizer": "nbit", "bits": 4, "group_size": 64},
    "8-tensor": {"quantizer": "nbit", "bits": 8, "granularity": "tensor"},
}


def make_quantizer(
    spec: QuantizerSpec,
    options: Mapping[str, Any] | None = None,
    granularity: Granularity | None = None,
) -> tuple[Quantizer | None, str]:
    """The quantizer that `spec` means and its name; (None, "fp32") for full precision.

    `options` go with a bare name. `granularity` holds where the spec says none of its own. Raises UsageError
    for a name or an option that does not exist.
    """
    spec = _normal(spec, options)
    if spec == FP32:
        return None, FP32
    if isinstance(spec, Mapping):
        values = dict(spec)
        if not isinstance(name := values.pop("quantizer", None), str):
            raise UsageError(f"{dict(spec)!r} names no quantizer; say {{'quantizer': 'nbit', 'bits': 4}}")
        granularity = _own_granularity(values) or granularity or Channel()
        return with_granularity(
            cast(Quantizer, registry().create("quantizer", name, values)), granularity
        ), name
    if isinstance(spec, str | type) or not hasattr(spec, "fake_quantize"):
        raise UsageError(f"a quantizer is a name, a mapping with a name, or an instance, not {spec!r}")
    return with_granularity(spec, granularity or Channel()), type(spec).__name__


def _own_granularity(values: dict[str, Any]) -> Granularity | None:
    """The granularity among a quantizer's options, taken out of them; None where they say nothing of it."""
    try:
        said = parse_granularity(values["granularity"]) if "granularity" in values else None
    except UsageError:
        return Channel()  # an option of the quantizer's own, which sees to it
    values.pop("granularity", None)
    if not values.get("group_size"):
        return said
    if said not in (None, Channel()):
        raise UsageError(f"group_size and granularity={said} contradict each other; leave one of them out")
    return Channel()  # the quantizer works in groups itself


def _normal(spec: QuantizerSpec, options: Mapping[str, Any] | None = None) -> QuantizerSpec:
    """`spec` in the one form in which equal ones compare equal, its name's options included."""
    if isinstance(spec, str) and spec != FP32:
        return {"quantizer": spec, **(options or {})}
    if options:
        raise UsageError("quantizer options go with a quantizer's name")
    return dict(spec) if isinstance(spec, Mapping) else spec


def plan_layers(
    model: nn.Module, config: QuantConfig, *, example_inputs: Inputs | None = None
) -> list[LayerChoice]:
    """`select` for the layers of a network, seen to run on `example_inputs`.

    `example_inputs` are the model's arguments; without them layers count as run in the order in which they
    are registered.
    """
    if any(isinstance(module, QATLayer) for module in model.modules()):
        raise UsageError("the model holds fake-quantised layers already; prepare a model only once")
    layers = describe(model)
    order = None
    if example_inputs is not None and _spares(config):
        order = _as_they_run(model, example_inputs)
    return select(layers, config, order)


def select(
    layers: Sequence[Layer], config: QuantConfig, order: Sequence[str] | None = None
) -> list[LayerChoice]:
    """The quantizer of every layer, in the order given.

    The head, the embeddings and what shares a weight with them stay in full precision unless
    `quantize_all` or `embeddings` say otherwise; so does what cannot be quantised, and what shares a weight
    with that. The head is the last Linear, unless another module with weights runs after it, as the norm at
    the end of an encoder does; `order` has the names of all of them as they run. Without it the last Linear
    of `layers` is the head.
    `config.layers` maps patterns of names to quantizers and wins over what could be otherwise. Raises
    UsageError where a pattern matches no layer that can be quantised, where layers with one weight would get
    different quantizers, or where nothing is left.
    """
    obstacles = _obstacles(layers)
    possible = [layer for layer in layers if layer not in obstacles]
    # a head that is tied to what cannot be quantised is the last Linear all the same
    exempt = _exempt([x for x in layers if not x.obstacle], order) if _spares(config) else {}
    default, spared = _normal(config.weights), _normal(FP32)
    if config.embeddings is not None:
        spared = EMBEDDINGS[config.embeddings]
    chosen: dict[Layer, QuantizerSpec] = {x: spared if x in exempt else default for x in possible}
    for pattern, spec in config.layers.items():
        matched = [x for x in possible if any(fnmatch.fnmatchcase(name, pattern) for name in x.names)]
        if not matched:
            names = [name for x in possible for name in x.names]
            raise UsageError(f"override {pattern!r} matches no layer; {nearest(pattern, names)}")
        chosen |= dict.fromkeys(matched, _normal(spec))
    _check_tied(chosen)
    plans = []
    for layer in layers:
        if layer in obstacles:
            plans.append(LayerChoice(layer, None, reason=obstacles[layer]))
            continue
        instance, label = make_quantizer(chosen[layer], granularity=parse_granularity(config.granularity))
        reason = "" if instance else exempt.get(layer, "asked for full precision")
        plans.append(LayerChoice(layer, instance, label, reason))
    if not any(plan.quantizer for plan in plans):
        raise UsageError(_nothing(plans))
    return plans


def _spares(config: QuantConfig) -> bool:
    """Whether the embeddings and the head differ from the rest."""
    return config.embeddings is not None or not config.quantize_all


def _obstacles(layers: Iterable[Layer]) -> dict[Layer, str]:
    """The layers that cannot be quantised, with the reason."""
    found = {layer: layer.obstacle for layer in layers if layer.obstacle}
    kept = {layer.weight: layer for layer in reversed(list(found))}
    ways: dict[str, set[bool]] = {}
    for layer in layers:
        ways.setdefault(layer.weight, set()).add(layer.transposed)
    for layer in layers:
        if layer not in found and layer.weight in kept:
            other = kept[layer.weight].name
            found[layer] = f"shares its weight with {other or 'the model'}, which cannot be quantised"
        elif layer not in found and len(ways[layer.weight]) > 1:
            found[layer] = "shares its weight with a layer that reads it transposed"
    return found


def _exempt(layers: Sequence[Layer], order: Sequence[str] | None) -> dict[Layer, str]:
    """The layers that stay in full precision by default, with the reason."""
    embedding, head, _ = SPARED
    exempt = {layer: embedding for layer in layers if layer.kind == "embedding"}
    linears = {layer.name: layer for layer in layers if layer.kind == "linear"}
    ran = order if order is not None else list(linears)
    if ran and ran[-1] in linears:
        exempt[linears[ran[-1]]] = head
    weights = {layer.weight for layer in exempt}
    tied = {x: _TIED for x in layers if x.weight in weights}
    return tied | exempt


def _as_they_run(model: nn.Module, example_inputs: Inputs) -> list[str]:
    """The names of the modules with weights and without parts, in the order in which one evaluation calls
    them.
    """
    names = {
        module: name
        for name, module in model.named_modules()
        if next(module.parameters(), None) is not None and next(module.children(), None) is None
    }
    order: list[str] = []
    watch(model, example_inputs, names, lambda module, _: order.append(names[module]))
    return order


def _check_tied(chosen: Mapping[Layer, QuantizerSpec]) -> None:
    first: dict[str, Layer] = {}
    for layer, spec in chosen.items():
        other = first.setdefault(layer.weight, layer)
        if spec != chosen[other]:
            raise UsageError(
                f"{other.name!r} and {layer.name!r} share one weight; give both the same quantizer"
            )


def _nothing(plans: Iterable[LayerChoice]) -> str:
    kept = ", ".join(f"{plan.name or 'the model'} ({plan.reason})" for plan in plans)
    if not kept:
        return "nothing to quantise: the model has no Linear, Conv1d, Conv2d or Embedding layer"
    return f"nothing to quantise: {kept}; quantize_all also takes the last Linear and embeddings"
