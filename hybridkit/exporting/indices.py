"""Which inputs of a network are indices of an embedding: found by running it, not by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hybridkit.calls import Inputs, call, evaluating
from hybridkit.runtime.modules import PackedEmbedding


def index_inputs(network: nn.Module, inputs: Inputs) -> dict[str | int, int]:
    """The inputs (by name, or by position) that an embedding gets, each with the entries of that embedding.

    Values and types of the inputs do not matter: an embedding is given what it can take in their place. An
    input that reaches several has the entries of the smallest. Raises whatever the network raises.
    """
    given: Iterable[tuple[str | int, Tensor]]
    given = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    watch = _Embeddings({_memory(x): name for name, x in given})
    packed = [part for part in network.modules() if isinstance(part, PackedEmbedding)]
    hooks = [part.register_forward_pre_hook(watch.packed) for part in packed]
    try:
        with evaluating(network), watch:
            call(network, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return watch.entries


def _memory(x: Tensor) -> int:
    """The same for a tensor and its views."""
    return x.untyped_storage().data_ptr()


class _Embeddings(TorchFunctionMode):
    """Notes which of the inputs (by their memory) reach `embedding`."""

    def __init__(self, inputs: Mapping[int, str | int]) -> None:
        self.inputs = inputs
        self.entries: dict[str | int, int] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is not F.embedding:
            return function(*arguments, **(named or {}))
        return self._embedding(*arguments, **(named or {}))

    def _embedding(self, input: Tensor, weight: Tensor, *arguments: Any, **named: Any) -> Tensor:
        return F.embedding(self._noted(input, len(weight)), weight, *arguments, **named)

    def packed(self, layer: PackedEmbedding, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same for an embedding that is an operator of ours: a hook before its forward."""
        return self._noted(arguments[0], layer.N), *arguments[1:]

    def _noted(self, input: Tensor, entries: int) -> Tensor:
        """What the embedding can take in the place of an input."""
        name = self.inputs.get(_memory(input))
        if name is None:
            return input
        self.entries[name] = min(entries, self.entries.get(name, entries))
        return torch.zeros_like(input, dtype=torch.int64)
