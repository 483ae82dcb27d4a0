"""Trees of tensors: what a batch is, and what a network answers with.

A tree is a tensor; a tuple (named or not), list, mapping (transformers' `ModelOutput` is one) or dataclass of
trees; or something else, which counts as a leaf without tensors (None, a number, a cache).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, Final

from torch import Tensor

from hybridkit.errors import UsageError

MAIN: Final = "logits"  # the output that loss, metrics and distillation are about, where outputs have names
CACHES: Final = frozenset({"past_key_values", "past_key_value", "cache_params", "mems"})  # not in files

Leaf = tuple[tuple[Any, ...], Tensor]  # the keys that lead to a tensor, and the tensor


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """`tree` with `function` applied to every tensor; what is no tensor stays. Mappings become dicts."""
    if isinstance(tree, Mapping):
        tree = dict(tree)
    return _mapped(lambda part: map_tensors(function, part), function, tree)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor, in order."""
    for _, tensor in _walk(tree):
        yield tensor


def named_tensors(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its place in the tree (`logits`, `hidden_states.3`), in order; '' for a lone one."""
    for keys, tensor in _walk(tree):
        yield ".".join(map(str, keys)), tensor


def floating(output: Any) -> dict[str, Tensor]:
    """The floating-point tensors of a network's output, by their places."""
    return {name: tensor for name, tensor in named_tensors(output) if tensor.is_floating_point()}


def main_output(output: Any) -> Tensor:
    """The tensor that an output is about: `logits` where there is one, else the first floating-point one.

    Raises UsageError where there is none.
    """
    found = floating(output)
    if not found:
        raise UsageError(f"the network's output, a {type(output).__name__}, holds no floating-point tensor")
    return found.get(MAIN, next(iter(found.values())))


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors in an output, in order, by the names they have in a file; caches are left out.

    A name is made of the keys that lead to the tensor, joined by `_`. Members of a sequence have numbers,
    unless there is one alone, and what has no key is called `output`. So a network that gives one tensor has
    `output`, one that gives two `output_0` and `output_1`, and one that gives a mapping has its keys.
    """
    found: dict[str, Tensor] = {}
    for keys, tensor in _numbered(list(_walk(output, CACHES))):
        words = [str(key) for key in keys]
        name = unique = "_".join(words if words and not words[0].isdecimal() else ("output", *words))
        count = 1
        while unique in found:
            count += 1
            unique = f"{name}_{count}"
        found[unique] = tensor
    return found


def with_outputs(output: Any, tensors: Sequence[Tensor]) -> Any:
    """A copy of `output` that holds `tensors` in the place of its own, in the order of `named_outputs`."""
    new = iter(tensors)

    def rebuilt(tree: Any) -> Any:
        return _mapped(rebuilt, lambda _: next(new), tree, CACHES)

    return rebuilt(output)


def compared(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs that a file is compared by: the floating-point ones, or all where there are none."""
    return {name: x for name, x in outputs.items() if x.is_floating_point()} or dict(outputs)


def _parts(tree: Any, skipped: Set[str] = frozenset()) -> list[tuple[Any, Any]]:
    """What a tree is made of, by key; nothing for a tensor and for what is no tree."""
    if isinstance(tree, Mapping):
        parts = list(tree.items())
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        parts = list(zip(tree._fields, tree, strict=True))
    elif isinstance(tree, list | tuple):
        return list(enumerate(tree))
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        parts = [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    else:
        return []
    return [(key, part) for key, part in parts if key not in skipped]


def _walk(tree: Any, skipped: Set[str] = frozenset()) -> Iterator[Leaf]:
    """Every tensor with the keys that lead to it, in order."""
    if isinstance(tree, Tensor):
        yield (), tree
    for key, part in _parts(tree, skipped):
        for keys, tensor in _walk(part, skipped):
            yield (key, *keys), tensor


def _mapped(
    branch: Callable[[Any], Any], leaf: Callable[[Tensor], Any], tree: Any, skipped: Set[str] = frozenset()
) -> Any:
    """A copy of `tree`: `leaf` of it where it is a tensor, else made of `branch` of its parts."""
    if isinstance(tree, Tensor):
        return leaf(tree)
    parts = {key: branch(part) for key, part in _parts(tree, skipped)}
    if not parts:
        return tree
    if isinstance(tree, Mapping):
        made = copy.copy(tree) if hasattr(tree, "__setitem__") else dict(tree)
        for key, part in parts.items():
            made[key] = part
        return made
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(**{key: parts.get(key, getattr(tree, key)) for key in tree._fields})
    if isinstance(tree, list | tuple):
        return type(tree)(parts.values())
    return dataclasses.replace(tree, **parts)


def _numbered(leaves: list[Leaf]) -> list[Leaf]:
    """The leaves with members of sequences counted anew, without what holds no tensor; none if it is one."""
    branches = [
        (first[0], _numbered([(keys[1:], tensor) for keys, tensor in inner]))
        for first, inner in itertools.groupby(leaves, key=lambda leaf: leaf[0][:1])
        if first
    ]
    if not branches:
        return leaves
    if isinstance(branches[0][0], int):
        if len(branches) == 1:
            return branches[0][1]
        branches = [(number, inner) for number, (_, inner) in enumerate(branches)]
    return [((key, *keys), tensor) for key, inner in branches for keys, tensor in inner]
