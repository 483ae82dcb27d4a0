"""Seeing what layers inside a network give while it runs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybridkit.blocks import hidden_of
from hybridkit.errors import UsageError


class Watch:
    """Keeps what `layers` give, from `begin` until it is taken.

    A layer that runs twice keeps its first output; what runs after `take`, as checkpointed activations do
    again, is not kept.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._open = False
        self._seen: dict[int, Tensor] = {}
        self._places = {layer: i for i, layer in enumerate(dict.fromkeys(layers))}
        for layer, place in self._places.items():
            layer.register_forward_hook(partial(self._keep, place))

    def begin(self) -> None:
        """Forget what was seen, and look from here on."""
        self._seen, self._open = {}, True

    def follow(self, network: nn.Module) -> None:
        """Begin whenever `network` is called with gradients; evaluations leave nothing in memory."""
        network.register_forward_pre_hook(self._called)

    def take(self) -> dict[nn.Module, Tensor]:
        """What each layer gave. Raises UsageError where one has not run."""
        seen, self._seen, self._open = self._seen, {}, False
        missing = [type(layer).__name__ for layer, place in self._places.items() if place not in seen]
        if missing:
            raise UsageError(f"--distil: a layer of the network ({missing[0]}) does not run in this task")
        return {layer: seen[place] for layer, place in self._places.items()}

    def _called(self, *_: Any) -> None:
        if torch.is_grad_enabled():
            self.begin()
        else:
            self._seen, self._open = {}, False

    def _keep(self, place: int, layer: nn.Module, args: Any, output: Any) -> None:
        if self._open and place not in self._seen:
            self._seen[place] = hidden_of(output)
