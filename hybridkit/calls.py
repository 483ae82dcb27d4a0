"""Calling a network: its arguments in order or by name, layers watched while it runs once, caches off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Sequence[Tensor] | Mapping[str, Tensor]  # a network's arguments, in order or by name


def call(network: nn.Module, inputs: Inputs) -> Any:
    """What `network` gives for its arguments."""
    return network(**inputs) if isinstance(inputs, Mapping) else network(*inputs)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In this context the network is in evaluation mode, without gradients; afterwards it is as it was."""
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            network.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def watch(
    network: nn.Module,
    inputs: Inputs,
    layers: Iterable[nn.Module],
    seen: Callable[[nn.Module, Any], None],
) -> None:
    """Run `network` once and call `seen(layer, its first argument)` after each of `layers` has run.

    The network runs in evaluation mode, without gradients, and is left as it was.
    """
    with evaluating(network), contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(
                layer.register_forward_hook(lambda layer, args, _: seen(layer, args[0] if args else None))
            )
        call(network, inputs)


@contextlib.contextmanager
def called_as(network: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """In this context calling `network` calls `forward`; its modules and their names stay."""
    own = vars(network).get("forward")
    network.forward = forward
    try:
        yield
    finally:
        del network.forward
        if own is not None:
            network.forward = own


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
