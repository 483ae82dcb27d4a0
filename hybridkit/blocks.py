"""The repeated blocks that a network consists of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.trees import floating


def main_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network, first to last: the list or sequence of modules of one class with most weights.

    Raises UsageError where there is none.
    """
    best: list[nn.Module] = []
    most = (False, 0)
    for module in network.modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        children = list(module.children())
        weights = sum(p.numel() for p in module.parameters())
        if weights and len({type(child) for child in children}) == 1:
            found = (len(children) > 1, weights)  # a list of one block only where no other is there
            if found > most:
                best, most = children, found
    if not best:
        raise UsageError(
            "the network has no repeated blocks (a ModuleList or Sequential of modules of one class)"
        )
    return best


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block gives: its first floating-point tensor. UsageError where none is."""
    for tensor in floating(output).values():
        return tensor
    raise UsageError(f"a block gives a {type(output).__name__} without a floating-point tensor")
