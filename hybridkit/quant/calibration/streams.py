"""What blocks of a network are called with on calibration data, and running one block at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridkit.blocks import hidden_of
from hybridkit.calls import Inputs, call, evaluating, without_caches

Hidden = list[Tensor]  # by batch, [batch, positions, width]


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call of a block beside its hidden states: masks, positions, and the like.

    name: of the hidden states, where they are given by name.
    """

    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    name: str | None

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden states that `block` gives for these."""
        if self.name is None:
            return hidden_of(block(hidden, *self.arguments, **self.named))
        return hidden_of(block(*self.arguments, **{self.name: hidden}, **self.named))


@dataclass(frozen=True, slots=True)
class Recording:
    """What went into the first block, and the calls of every block, batch by batch."""

    hidden: Hidden
    calls: list[list[Call]]


def record(network: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Inputs]) -> Recording:
    """Run `network` on each batch. Beside hidden states blocks must not depend on those before them."""
    found = Recording([], [[] for _ in blocks])

    def seen(place: int, block: nn.Module) -> Callable[..., None]:
        name = next(iter(inspect.signature(block.forward).parameters))

        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = arguments[0] if arguments else named[name]
            if place == 0:
                found.hidden.append(hidden.detach().clone())
            rest = {key: value for key, value in named.items() if key != name}
            found.calls[place].append(Call(arguments[1:], rest, None if arguments else name))

        return hook

    hooks = [
        block.register_forward_pre_hook(seen(place, block), with_kwargs=True)
        for place, block in enumerate(blocks)
    ]
    try:
        with evaluating(network), without_caches(network):
            for batch in batches:
                call(network, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def advance(block: nn.Module, hidden: Hidden, calls: Sequence[Call]) -> Hidden:
    """What `block` gives for each batch."""
    return [each.run(block, x) for each, x in zip(calls, hidden, strict=True)]
