"""What a layer is: recognised in a network, or by the name and the shape of a weight alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hybridkit.packing.layers import LayerKind

_FORWARDS: Final[dict[LayerKind, type[nn.Module]]] = {
    "linear": nn.Linear,
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "embedding": nn.Embedding,
}
_COMPUTES: Final = ("__call__", "forward", "_conv_forward")  # the last is what a convolution's forward calls
_BASES: Final = tuple(_FORWARDS.values())
_SCALED: Final = "ScaledWordEmbedding"
_SCALED_FORWARD: Final = {"super", "forward", "embed_scale", "to", "weight", "dtype"}
_ATTENTION: Final = "nn.MultiheadAttention reads its weights past any layer"
_LOOSE: Final = "a parameter of {}, which is no Linear, Conv1d, Conv2d or Embedding"
_DIMENSIONS: Final[dict[int, LayerKind]] = {2: "linear", 3: "conv1d", 4: "conv2d"}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer without its content.

    weight: its name in the state dictionary; layers that share a weight all say the first one's.
    shape: of the weight with the outputs first; `transposed` says that it is stored with the inputs first.
    aliases: other names of the same module. obstacle: why it cannot be quantised, if so; such a layer may be
    of any other kind, or a parameter that belongs to no layer.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weight: str
    aliases: tuple[str, ...] = ()
    transposed: bool = False
    obstacle: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the module."""
        return (self.name, *self.aliases)

    def oriented(self, weight: Tensor) -> Tensor:
        """The stored weight with the outputs first; a view."""
        return weight.detach().t() if self.transposed else weight.detach()

    def matrix(self, weight: Tensor) -> Tensor:
        """The stored weight as float32 [N, K]."""
        return self.oriented(weight).flatten(1).float()


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of layer that a module computes, or None.

    Classes of torch, subclasses with the very same forward, and of transformers `Conv1D`, a linear layer, and
    scaled word embeddings.
    """
    if is_transposed(module):
        return "linear"
    if is_scaled(module):
        return "embedding"
    for kind, base in _FORWARDS.items():
        if isinstance(module, base):
            return kind if all(_inherits(type(module), base, name) for name in _COMPUTES) else None
    return None


def _inherits(cls: type, base: type, name: str) -> bool:
    return getattr(cls, name, None) is getattr(base, name, None)


def is_transposed(module: nn.Module) -> bool:
    """Whether this is transformers' `Conv1D`: a linear layer whose weight is stored [inputs, outputs].

    A fake-quantised one still is one.
    """
    kind: type = getattr(module, "float_class", type(module))
    origin = next((c for c in kind.__mro__ if c.__name__ == "Conv1D"), None)
    weight = module._parameters.get("weight")
    if origin is None or weight is None or not hasattr(module, "nf") or weight.dim() != 2:
        return False
    return _inherits(kind, origin, "forward") and weight.shape[1] == module.nf


def is_scaled(module: nn.Module) -> bool:
    """Whether this is an embedding whose rows are multiplied by `embed_scale`: transformers has many of them.

    Known by the class's name and by what its forward names. A fake-quantised one still is one.
    """
    kind: type = getattr(module, "float_class", type(module))
    origin = next((c for c in kind.__mro__ if c.__name__.endswith(_SCALED)), None)
    if origin is None or not isinstance(module, nn.Embedding) or not hasattr(module, "embed_scale"):
        return False
    code = getattr(origin.__dict__.get("forward"), "__code__", None)
    if code is None or not {"embed_scale"} <= set(code.co_names) <= _SCALED_FORWARD:
        return False
    plain = all(constant is None or isinstance(constant, str) for constant in code.co_consts)
    return plain and _inherits(kind, origin, "forward")


def describe(model: nn.Module) -> list[Layer]:
    """Every layer of a network, in the order of registration, each module once; on any device, meta too.

    After them come the parameters of two dimensions or more that no layer of a known kind holds.
    """
    aliases: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        aliases[module].append(name)
    attentions = [module for module in aliases if isinstance(module, nn.MultiheadAttention)]
    inside = {part for attention in attentions for part in attention.modules()}
    weights: dict[int, str] = {}
    layers, rest = [], []
    for module, names in aliases.items():
        obstacle = _ATTENTION if module in inside else _obstacle(module)
        if layer := _layer(module, names, obstacle, weights):
            layers.append(layer)
        elif module not in inside:
            rest += [
                (_join(names[0], own), type(module), p)
                for own, p in module._parameters.items()
                if p is not None
            ]
    return layers + [
        Layer(name, "", tuple(p.shape), weights.get(id(p), name), obstacle=_LOOSE.format(owner.__name__))
        for name, owner, p in rest
        if not is_lazy(p) and p.dim() > 1
    ]


def _layer(module: nn.Module, names: list[str], obstacle: str, weights: dict[int, str]) -> Layer | None:
    """The module as a layer, or None where it is none; `weights` collects names of weights by identity."""
    kind = kind_of(module)
    if isinstance(module, nn.MultiheadAttention):
        return Layer(names[0], "attention", (), "", tuple(names[1:]), obstacle=obstacle)
    if kind is None and not isinstance(module, _BASES):
        return None
    weight, own, transposed = (
        module._parameters.get("weight"),
        _join(names[0], "weight"),
        is_transposed(module),
    )
    stored = own if weight is None else weights.setdefault(id(weight), own)
    shape = () if weight is None or is_lazy(weight) else tuple(weight.shape)
    shape = shape[::-1] if transposed else shape
    return Layer(names[0], kind or "", shape, stored, tuple(names[1:]), transposed, obstacle)


def _obstacle(module: nn.Module) -> str:
    """Why a weight layer cannot be quantised; empty where it can, or is none."""
    if not isinstance(module, _BASES):
        return ""
    if module._parameters.get("weight") is None:
        return "its weight is computed (weight_norm or a parametrisation); remove that first"
    if kind_of(module) is None:
        return f"{type(module).__name__} is a subclass with a forward of its own"
    if is_lazy(module.get_parameter("weight")):
        return "its weight has no shape yet; run the model once first"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm changes the weight in the forward"
    return ""


def _join(name: str, own: str) -> str:
    return f"{name}.{own}" if name else own


def describe_weights(
    shapes: Mapping[str, Iterable[int]], kinds: Mapping[str, LayerKind] | None = None
) -> list[Layer]:
    """The layers that a checkpoint's tensors belong to, by name and shape alone, in their natural order.

    A tensor `NAME.weight` with two dimensions is a Linear, or an Embedding where NAME sounds like one
    (`embed`, `wte`, `word_embeddings`); with three it is a Conv1d, with four a Conv2d. `kinds` says it for
    the layers it names. What is called `head`, `lm_head` or `output` comes last, as it runs.
    """
    layers = []
    for tensor in sorted(shapes, key=_natural):
        name, _, own = tensor.rpartition(".")
        shape = tuple(shapes[tensor])
        if own != "weight" or len(shape) not in _DIMENSIONS:
            if len(shape) > 1:
                layers.append(Layer(tensor, "", shape, tensor, obstacle="a tensor that is not called weight"))
            continue
        guess: LayerKind = _DIMENSIONS[len(shape)]
        if guess == "linear" and any(_EMBEDDING.search(part) for part in name.split(".")):
            guess = "embedding"
        layers.append(Layer(name, (kinds or {}).get(name, guess), shape, tensor))
    return sorted(layers, key=lambda layer: bool(_HEAD.fullmatch(layer.name.rpartition(".")[2])))


_EMBEDDING: Final = re.compile(r"^emb|^wte$|^wpe$|embeddings?$|_emb$|embed_tokens")
_HEAD: Final = re.compile(r"(lm_)?head|output")


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """So that layers.10 comes after layers.9."""
    numbers = ((part.isascii() and part.isdigit(), part) for part in name.split("."))
    return [(number, int(part) if number else 0, part) for number, part in numbers]
