"""What blocks of a network are called with on calibration data, and running one block at a time."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True, slots=True)
class Behind:
    """Blocks in full precision that come after another one, with their calls by batch."""

    blocks: Sequence[nn.Module]
    calls: Sequence[Sequence[Call]]

    def run(self, batch: int, hidden: Tensor) -> Tensor:
        """What the last of them makes of hidden states of a batch; without blocks, those themselves."""
        for block, calls in zip(self.blocks, self.calls, strict=True):
            hidden = calls[batch].run(block, hidden)
        return hidden


class _AllSeen(Exception):  # noqa: N818 - no error
    pass


def record(network: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Inputs]) -> Recording:
    """Run `network` on the first batch, and on others what comes before its blocks.

    Beside hidden states blocks must not depend on those before them; then they need not compute to be called.
    """
    found = Recording([], [[] for _ in blocks])
    names = [next(iter(inspect.signature(block.forward).parameters)) for block in blocks]
    outputs: list[Any] = []
    rest_skipped = False  # the first batch shows what runs twice

    def called(place: int, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        name = names[place]
        if place == 0:
            found.hidden.append((arguments[0] if arguments else named[name]).detach().clone())
        rest = {key: value for key, value in named.items() if key != name}
        found.calls[place].append(Call(arguments[1:], rest, None if arguments else name))
        if rest_skipped and place == len(blocks) - 1:
            raise _AllSeen

    with evaluating(network), without_caches(network), contextlib.ExitStack() as undo:
        for place, block in enumerate(blocks):
            handle = block.register_forward_pre_hook(partial(called, place), with_kwargs=True)
            undo.callback(handle.remove)
        with contextlib.ExitStack() as first:
            for block in blocks:
                handle = block.register_forward_hook(lambda *call: outputs.append(call[-1]))
                first.callback(handle.remove)
            for batch in batches[:1]:
                call(network, batch)
        if all(_is_like(output, found.hidden[0]) for output in outputs):
            for block, name, output in zip(blocks, names, outputs, strict=False):
                block.forward = partial(_passed_on, name, output)
                undo.callback(delattr, block, "forward")
        rest_skipped = True
        for batch in batches[1:]:
            with contextlib.suppress(_AllSeen):
                call(network, batch)
    return found


def _is_like(output: Any, hidden: Tensor) -> bool:
    first = output[0] if isinstance(output, tuple) and output else output
    return isinstance(first, Tensor) and first.shape == hidden.shape


def _passed_on(name: str, output: Any, *arguments: Any, **named: Any) -> Any:
    """The hidden states that a block gets, in the form of what it gave once."""
    hidden = arguments[0] if arguments else named[name]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@torch.no_grad()
def advance(block: nn.Module, hidden: Hidden, calls: Sequence[Call]) -> Hidden:
    """What `block` gives for each batch."""
    return [each.run(block, x) for each, x in zip(calls, hidden, strict=True)]
