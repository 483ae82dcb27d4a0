"""Trees of tensors: what a batch is, and what a network answers with.

A tree is a tensor, a tuple, list or mapping of trees (a `ModelOutput` of transformers is a mapping), or
something else, which counts as a leaf without tensors (None, a number, a cache).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from hybridkit.errors import UsageError

MAIN = "logits"  # the output that loss, metrics and distillation are about, where outputs have names


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """`tree` with `function` applied to every tensor; what is no tensor stays. Mappings become dicts."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, value) for value in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(map_tensors(function, value) for value in tree)
    return tree


def named_tensors(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its place in the tree (`logits`, `hidden_states.3`), in order; '' for a lone one."""
    if isinstance(tree, Tensor):
        yield path, tree
        return
    if isinstance(tree, Mapping):
        entries = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, tuple | list):
        entries = [(str(place), value) for place, value in enumerate(tree)]
    else:
        return
    for key, value in entries:
        yield from named_tensors(value, f"{path}.{key}" if path else key)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor, in order."""
    for _, tensor in named_tensors(tree):
        yield tensor


def floating(output: Any) -> dict[str, Tensor]:
    """The floating-point tensors of a network's output, by name."""
    return {name: tensor for name, tensor in named_tensors(output) if tensor.is_floating_point()}


def main_output(output: Any) -> Tensor:
    """The tensor that an output is about: `logits` where there is one, else the first floating-point one.

    Raises UsageError where there is none.
    """
    found = floating(output)
    if not found:
        raise UsageError(f"the network's output, a {type(output).__name__}, holds no floating-point tensor")
    return found.get(MAIN, next(iter(found.values())))
