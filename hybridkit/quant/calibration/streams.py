"""What blocks of a network are called with on calibration data, and running one block at a time."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybridkit.blocks import hidden_of
from hybridkit.calls import Inputs, call, evaluating, without_caches
from hybridkit.trees import MAIN, floating

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
class Form:
    """In what a block gives its hidden states.

    name: of hidden states among its arguments. beside: what comes after them in a tuple; None: no tuple.
    """

    name: str
    beside: tuple[Any, ...] | None

    def of(self, hidden: Tensor) -> Any:
        """These hidden states as the block would give them."""
        return hidden if self.beside is None else (hidden, *self.beside)

    def pass_on(self, *arguments: Any, **named: Any) -> Any:
        """The hidden states that the block gets, as it would give them."""
        return self.of(arguments[0] if arguments else named[self.name])


@dataclass(slots=True)
class Recording:
    """What went into the first block, and the calls of every block, batch by batch.

    forms: of every block. alike: whether all give hidden states of the shape that they get.
    logits: whether the network gives some.
    """

    hidden: Hidden
    calls: list[list[Call]]
    forms: list[Form]
    alike: bool = False
    logits: bool = False

    @contextlib.contextmanager
    def passing(self, blocks: Sequence[nn.Module], last: Tensor | None = None) -> Iterator[None]:
        """In this context blocks that can pass on what they get; the last gives `last`, if it is given."""
        with contextlib.ExitStack() as undo:
            for place, (block, form) in enumerate(zip(blocks, self.forms, strict=False)):
                if last is not None and place == len(blocks) - 1:
                    block.forward = partial(_give, form.of(last))
                elif self.alike:
                    block.forward = form.pass_on
                else:
                    continue
                undo.callback(delattr, block, "forward")
            yield


def _give(output: Any, *_: Any, **__: Any) -> Any:
    return output


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
    found = Recording([], [[] for _ in blocks], [])
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
                found.logits = MAIN in floating(call(network, batch))
        found.alike = all(_is_like(output, found.hidden[0]) for output in outputs)
        rests = (output[1:] if isinstance(output, tuple) else None for output in outputs)
        found.forms = [Form(name, rest) for name, rest in zip(names, rests, strict=False)]
        undo.enter_context(found.passing(blocks))
        rest_skipped = True
        for batch in batches[1:]:
            with contextlib.suppress(_AllSeen):
                call(network, batch)
    return found


def outputs_of(network: nn.Module, block: nn.Module, batches: Sequence[Inputs]) -> Hidden:
    """The hidden states that `block` gives for each batch, as `network` runs up to there."""
    found: Hidden = []

    def seen(*of_call: Any) -> None:
        found.append(hidden_of(of_call[-1]).detach())
        raise _AllSeen

    handle = block.register_forward_hook(seen)
    try:
        with torch.no_grad(), evaluating(network), without_caches(network):
            for batch in batches:
                with contextlib.suppress(_AllSeen):
                    call(network, batch)
    finally:
        handle.remove()
    return found


def _is_like(output: Any, hidden: Tensor) -> bool:
    first = output[0] if isinstance(output, tuple) and output else output
    return isinstance(first, Tensor) and first.shape == hidden.shape


@torch.no_grad()
def advance(block: nn.Module, hidden: Hidden, calls: Sequence[Call]) -> Hidden:
    """What `block` gives for each batch."""
    return [each.run(block, x) for each, x in zip(calls, hidden, strict=True)]
