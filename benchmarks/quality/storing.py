"""A network with the weights that a tool stores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.quality.peers import Importance, Peer

FEW: Final = 32  # rows
BYTES, WEIGHTS = "bytes.json", "weights.safetensors"  # of a folder that a program of this folder wrote


@torch.no_grad()
def importances(network: nn.Module, run: Callable[[], object]) -> dict[str, Importance]:
    """The mean square of what the columns of each linear layer meet while `run` runs it, [K], by name."""
    sums: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0].flatten(0, -2).float()
        sums[module] = sums.get(module, 0) + x.square().sum(0)
        counts[module] = counts.get(module, 0) + len(x)

    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    run()
    for handle in handles:
        handle.remove()
    return {name: sums[m] / counts[m] for name, m in network.named_modules() if m in sums}


@contextmanager
@torch.no_grad()
def stored(network: nn.Module, peer: Peer, squares: dict[str, Importance]) -> Iterator[int]:
    """In this context the weights are what `peer` stores; the bytes of all that is stored.

    A head that shares the weight of an embedding is stored as that. Vectors stay in fp32; so do matrices of
    a few rows, which no tool quantises.
    """
    kept: dict[Tensor, Tensor] = {}
    size = 0
    for name, module in network.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight in kept:
            continue
        if len(module.weight) < FEW:
            continue
        store = peer.embedding if isinstance(module, nn.Embedding) else peer.layers
        bytes_, made = store(module.weight.detach().clone(), squares.get(name))
        kept[module.weight] = module.weight.detach().clone()
        module.weight.copy_(made)
        size += bytes_
    size += sum(p.nbytes for p in dict.fromkeys(network.parameters()) if p not in kept)
    try:
        yield size
    finally:
        for weight, before in kept.items():
            weight.copy_(before)


@contextmanager
@torch.no_grad()
def given(network: nn.Module, folder: Path) -> Iterator[int]:
    """In this context the weights are those in `folder`; the bytes that they take where they came from."""
    weights = load_file(folder / WEIGHTS)
    before = {name: network.get_parameter(name).detach().clone() for name in weights}
    for name, weight in weights.items():
        network.get_parameter(name).copy_(weight)
    try:
        yield json.loads((folder / BYTES).read_text("utf-8"))["bytes"]
    finally:
        for name, weight in before.items():
            network.get_parameter(name).copy_(weight)
