"""What a network takes and gives: inputs by position or by name, outputs of any structure by name.

An output may be a tensor, a tuple or list, a mapping (transformers' `ModelOutput` is one), a dataclass, and
these within each other. What a network remembers for its next call, None, and objects of any other type are
no outputs of a file.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

Inputs = Sequence[Tensor] | Mapping[str, Tensor]

CACHES: Final = frozenset({"past_key_values", "past_key_value", "cache_params", "mems"})


def call(network: nn.Module, inputs: Inputs) -> Any:
    """What `network` gives for inputs by position or by name."""
    return network(**inputs) if isinstance(inputs, Mapping) else network(*inputs)


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """The inputs in order."""
    return list(inputs.values() if isinstance(inputs, Mapping) else inputs)


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors in an output, in order.

    A name is made of the keys that lead to the tensor, joined by `_`. Members of a sequence have numbers,
    unless there is one alone, and what has no key is called `output`. So a network that gives one tensor has
    `output`, one that gives two `output_0` and `output_1`, and one that gives a mapping has its keys.
    """
    found: dict[str, Tensor] = {}
    for keys, tensor in _leaves(output):
        name = unique = "_".join(keys if keys and not keys[0].isdecimal() else ("output", *keys))
        count = 1
        while unique in found:
            count += 1
            unique = f"{name}_{count}"
        found[unique] = tensor
    return found


def compared(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs that a file is compared by: the floating-point ones, or all where there are none."""
    return {name: x for name, x in outputs.items() if x.is_floating_point()} or dict(outputs)


def with_outputs(output: Any, tensors: Sequence[Tensor]) -> Any:
    """A copy of `output` that holds `tensors` in the place of its own, in the order of `named_outputs`."""
    return _rebuilt(output, iter(tensors))


@contextlib.contextmanager
def without_caches(network: nn.Module) -> Iterator[None]:
    """In this context transformers' networks give no cache: `use_cache` of their configurations is off."""
    configurations = {id(c): c for m in network.modules() if (c := getattr(m, "config", None)) is not None}
    caching = [c for c in configurations.values() if getattr(c, "use_cache", None) is True]
    for configuration in caching:
        configuration.use_cache = False
    try:
        yield
    finally:
        for configuration in caching:
            configuration.use_cache = True


def _parts(tree: Any) -> list[tuple[Any, Any]]:
    """What an output is made of, by key; nothing for a tensor and for what is no output."""
    if isinstance(tree, Mapping):
        return [(key, part) for key, part in tree.items() if key not in CACHES]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return [(key, getattr(tree, key)) for key in tree._fields if key not in CACHES]
    if isinstance(tree, list | tuple):
        return list(enumerate(tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree) if f.name not in CACHES]
    return []


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Tensor]]:
    """The tensors of an output with the keys that lead to them."""
    if isinstance(tree, Tensor):
        return [((), tree)]
    branches = [(key, leaves) for key, part in _parts(tree) if (leaves := _leaves(part))]
    if branches and isinstance(branches[0][0], int):  # a sequence
        if len(branches) == 1:
            return branches[0][1]
        branches = [(number, leaves) for number, (_, leaves) in enumerate(branches)]
    return [((str(key), *inner), tensor) for key, leaves in branches for inner, tensor in leaves]


def _rebuilt(tree: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return next(tensors)
    parts = {key: _rebuilt(part, tensors) for key, part in _parts(tree)}
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
