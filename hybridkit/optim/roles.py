"""What each parameter is for: by module types, by tying, and by what happens to it when the model runs.

Names say nothing here: a model whose modules are renamed gets the same roles.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from hybridkit.calls import Inputs, watch
from hybridkit.errors import UsageError
from hybridkit.options import nearest, option
from hybridkit.trees import tensors

logger = logging.getLogger(__name__)


class Role(StrEnum):
    """What a parameter is for, as far as optimizers treat it differently."""

    EMBEDDING = "embedding"  # looked up by index or position; one that is tied to the output counts here
    OUTPUT = "output"  # makes the output
    HIDDEN = "hidden"  # every other matrix and convolution kernel
    VECTOR = "vector"  # biases and scales, whatever their shape


Roles = Mapping[str, Role]

_LAYERS: Final = (nn.Linear, nn.Bilinear, _ConvNd)
_TYPES: Final[dict[Role, tuple[type[nn.Module], ...]]] = {
    Role.EMBEDDING: (nn.Embedding, nn.EmbeddingBag),
    Role.HIDDEN: (*_LAYERS, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase),
    Role.VECTOR: (nn.LayerNorm, nn.RMSNorm),
}
# torch functions, by name, in which a parameter that no module type explains shows what it is for
_LOOKUPS: Final = frozenset({"embedding", "embedding_bag"})
_PRODUCTS: Final = frozenset(
    {"linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "addbmm", "baddbmm"}
    | {"einsum", "tensordot", "multi_head_attention_forward"}
    | {f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3)}
)
_PLACES: Final = frozenset(
    {"add", "__add__", "__radd__", "add_", "sub", "cat", "stack", "__getitem__", "index_select", "gather"}
)
_SCALES: Final = frozenset({"mul", "__mul__", "__rmul__", "mul_", "div", "layer_norm", "rms_norm", "prelu"})
_USES: Final = (  # the first that is seen decides
    (Role.EMBEDDING, _LOOKUPS),
    (Role.HIDDEN, _PRODUCTS),
    (Role.EMBEDDING, _PLACES),
    (Role.VECTOR, _SCALES),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleNames:
    """Options by which a user says what parameters are for: patterns of their names, separated by commas."""

    embedding_names: str = option("", "name patterns of embeddings, where they are not found by themselves")
    output_names: str = option("", "name patterns of output layers, in place of the one that is found")
    hidden_names: str = option("", "name patterns of hidden matrices, where they are not found by themselves")

    def chosen(self, named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Role]:
        """The roles of those that a pattern matches and that have two dimensions or more."""
        found: dict[str, Role] = {}
        matrices = [name for name, p in named_parameters if p.ndim >= 2]
        for field in fields(RoleNames):
            patterns = [p.strip().lower() for p in getattr(self, field.name).split(",")]
            role = Role(field.name.removesuffix("_names"))
            found |= {n: role for n in matrices if any(fnmatchcase(n.lower(), p) for p in patterns)}
        return found

    def known(
        self, named_parameters: Sequence[tuple[str, Tensor]], roles: Roles | None = None
    ) -> dict[str, Role]:
        """`roles`, by shape where there are none, but for what the patterns say."""
        chosen = self.chosen(named_parameters)
        return {**(roles_by_shape(named_parameters, chosen) if roles is None else roles), **chosen}


def parameter_roles(
    model: nn.Module,
    example_inputs: Inputs | None = None,
    given: Mapping[str, str] | None = None,
) -> dict[str, Role]:
    """The role of each of `model.named_parameters()`.

    Module types say what most are for, and tying is by identity. The output is made by the Linear or
    convolution that runs last on `example_inputs` (the model's arguments), without them by the one that is
    registered last. They also show what bare Parameters are for: those that are looked up, added or indexed
    are embeddings, those that only scale are vectors. What stays undecided counts as hidden; it is said once.

    The model runs in evaluation mode, without gradients, and is left as it was. `given` wins over what is
    found. Raises UsageError where it names what does not exist.
    """
    named = dict(model.named_parameters())
    roles = _typed(model)
    seen = _Watched(named.values())
    if example_inputs is not None:
        _run(model, example_inputs, seen)
    for parameter, functions in seen.functions.items():
        used = next((role for role, names in _USES if names & functions), None)
        if parameter.ndim >= 2 and used and (parameter not in roles or functions & _LOOKUPS):
            roles[parameter] = used
    chosen = _checked(given or {}, named)
    undecided = [n for n, p in named.items() if p not in roles and n not in chosen and not _is_vector(p)]
    if Role.OUTPUT not in chosen.values():
        layers = [_matrices(m) for m in model.modules() if isinstance(m, _LAYERS)]
        bare: list[list[Tensor]] = [[named[name]] for name in undecided]
        for p in (seen.products or layers or bare or [[]])[-1]:
            if roles.get(p, Role.HIDDEN) == Role.HIDDEN:
                roles[p] = Role.OUTPUT
    undecided = [name for name in undecided if named[name] not in roles]
    if undecided:
        _say(
            f"what {', '.join(undecided)} is for does not show in the model; it counts as hidden: give "
            "example_inputs, or say it (roles=, or the optimizer's option embedding_names)"
        )
    default = {name: Role.VECTOR if _is_vector(p) else Role.HIDDEN for name, p in named.items()}
    return {name: chosen.get(name, roles.get(p, default[name])) for name, p in named.items()}


def roles_by_shape(
    named_parameters: Iterable[tuple[str, Tensor]], given: Mapping[str, str] | None = None
) -> dict[str, Role]:
    """Roles where there is no model to look at: matrices are hidden, the last is the output; said once.

    `given` is as for `parameter_roles`, and where it holds every matrix nothing is left to say.
    """
    named = dict(named_parameters)
    chosen = _checked(given or {}, named)
    roles = {name: Role.VECTOR if p.ndim < 2 else Role.HIDDEN for name, p in named.items()}
    guessed = [name for name, role in roles.items() if role == Role.HIDDEN and name not in chosen]
    if guessed and Role.OUTPUT not in chosen.values():
        roles[guessed[-1]] = Role.OUTPUT
        _say(
            f"parameters without their model: matrices count as hidden, the last, {guessed[-1]}, as the "
            "output layer, none as an embedding; give the model, or roles"
        )
    return roles | chosen


def _typed(model: nn.Module) -> dict[Tensor, Role]:
    """What module types say; what lies inside a layer (a parametrisation, say) is part of it."""
    found: dict[Tensor, Role] = {}
    for module in model.modules():
        for role, types in _TYPES.items():
            if isinstance(module, types):
                matrices = dict.fromkeys(_matrices(module), role)
                found = found | matrices if role == Role.EMBEDDING else matrices | found
    return found


def _is_vector(parameter: Tensor) -> bool:
    """Whether it has at most one dimension that is longer than 1."""
    return parameter.ndim < 2 or parameter.numel() <= max(parameter.shape)


def _matrices(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.ndim >= 2]


class _Watched(TorchFunctionMode):
    """Takes down which torch functions each parameter, or a view of it, goes into."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.functions: dict[Tensor, set[str]] = {p: set() for p in parameters}
        self.products: list[list[Tensor]] = []  # the matrices of each product, in the order they ran

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        found = [p for p in _parameters((args, *(kwargs or {}).values())) if p in self.functions]
        for p in found:
            self.functions[p].add(name)
        matrices = [p for p in found if p.ndim >= 2]
        if name in _PRODUCTS and matrices:
            self.products.append(matrices)
        return func(*args, **(kwargs or {}))


def _parameters(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested arguments, views as what they are views of."""
    for tensor in tensors(value):
        yield tensor if tensor._base is None else tensor._base


def _run(model: nn.Module, example_inputs: Inputs, watched: _Watched) -> None:
    """Run the model once. Layers are watched as such: a quantised one multiplies by other tensors."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped: compiled code is not seen
    layers = [layer for layer in model.modules() if isinstance(layer, _LAYERS)]
    with torch.random.fork_rng(devices=[]), watched:
        watch(model, example_inputs, layers, lambda layer, _: watched.products.append(_matrices(layer)))


def _checked(given: Mapping[str, str], named: Mapping[str, Tensor]) -> dict[str, Role]:
    for name, role in given.items():
        if name not in named:
            raise UsageError(f"roles: no parameter is called {name!r}; {nearest(name, named)}")
        if role not in list(Role):
            raise UsageError(f"roles: {name!r} cannot be {role!r}; {nearest(role, [str(r) for r in Role])}")
        if named[name].ndim < 2 and role != Role.VECTOR:
            raise UsageError(f"roles: {name!r} has fewer than two dimensions; it is a vector, no {role}")
    return {name: Role(role) for name, role in given.items()}


@functools.cache
def _say(text: str) -> None:
    logger.warning(text)
