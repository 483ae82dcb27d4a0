"""A file whose weights and activations are fp16 where they are not packed, for engines that compute in it.

Inputs and outputs stay float32, and so do scales of packed layers, and what a network itself has in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hybridkit.calls import called_as
from hybridkit.runtime.modules import is_packed
from hybridkit.trees import map_tensors


@contextlib.contextmanager
def in_half(network: nn.Module) -> Iterator[None]:
    """In this context `network` computes in fp16, on weights rounded to it.

    Buffers of modules without weights are left: frequencies of rotary positions are no numbers for fp16.
    """
    inner = network.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        given, also = map_tensors(_halved, list(arguments)), map_tensors(_halved, named)
        return map_tensors(_widened, inner(*given, **also))

    with contextlib.ExitStack() as undo:
        made: dict[int, Tensor] = {}  # of tied weights one
        for module in network.modules():
            if is_packed(module):  # embeddings give float32
                handle = module.register_forward_hook(lambda _, given, rows: _halved(rows))
                undo.callback(handle.remove)
            elif module._parameters:
                tensors: dict[str, Any]
                for tensors in (module._parameters, module._buffers):
                    undo.callback(dict.update, tensors, dict(tensors))
                    dict.update(tensors, {name: _half_of(x, made) for name, x in tensors.items()})
        undo.enter_context(called_as(network, forward))
        yield


def _half_of(tensor: Tensor | None, made: dict[int, Tensor]) -> Tensor | None:
    """`tensor` in fp16 where it is float32; the same one for the same one."""
    if tensor is None or tensor.dtype != torch.float32:
        return tensor
    if id(tensor) not in made:
        half = tensor.detach().half()
        made[id(tensor)] = nn.Parameter(half, False) if isinstance(tensor, nn.Parameter) else half
    return made[id(tensor)]


def _halved(x: Tensor) -> Tensor:
    return x.half() if x.dtype == torch.float32 else x


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float16 else x
