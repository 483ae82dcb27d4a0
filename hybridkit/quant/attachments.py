"""Small full-precision modules beside a quantised layer: a norm before it, and a low-rank correction.

They are children of the layer that hooks call, so the layer keeps its class, its name and its other
parameters, whether it is plain, fake-quantised or packed. In the state dictionary, and so in checkpoints and
packed files, they are `NAME.input_norm.weight`, `NAME.adapter.down` and `NAME.adapter.up`; exported, they
are ordinary nodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS: Final = 1e-6
NORM: Final = "input_norm"
ADAPTER: Final = "adapter"
NAMES: Final = (f"{NORM}.weight", f"{ADAPTER}.down", f"{ADAPTER}.up")  # in the layer's state dictionary


class Adapter(nn.Module):
    """A low-rank correction: x [..., K] gives up @ (down @ x), [..., N] (LoRA, arXiv 2106.09685, eq. 3).

    down [r, K] starts as a Linear's weight would, up [N, r] at zero, so that it begins with no effect. The
    paper's factor alpha / r is 1.
    """

    def __init__(self, K: int, N: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, K))
        self.up = nn.Parameter(torch.zeros(N, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """The correction, in x's type."""
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


def insert_norm(layer: nn.Module, width: int, gain: float = 1.0) -> nn.RMSNorm:
    """Put an RMSNorm before `layer`, whose inputs are [..., width]; all of its weight begins at `gain`."""
    norm = nn.RMSNorm(width, eps=EPS)
    nn.init.constant_(norm.weight, gain)
    layer.add_module(NORM, norm)
    layer.register_forward_pre_hook(_normalised)
    return norm


def add_adapter(layer: nn.Module, K: int, N: int, rank: int) -> Adapter:
    """Put an Adapter beside `layer`, which maps [..., K] to [..., N]; its output is the sum of both."""
    adapter = Adapter(K, N, rank)
    layer.add_module(ADAPTER, adapter)
    layer.register_forward_hook(_corrected)
    return adapter


def adapter_names(model: nn.Module) -> list[str]:
    """The names of the parameters of adapters."""
    own = {id(p) for module in model.modules() if isinstance(module, Adapter) for p in module.parameters()}
    return [name for name, p in model.named_parameters() if id(p) in own]


def attach(layer: nn.Module, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """What `shapes`, by names of tensors, say was beside the layer called `name`, with weights of its own."""
    prefix = f"{name}." if name else ""
    norm, down, up = (shapes.get(prefix + own) for own in NAMES)
    if norm is not None and len(norm) == 1:
        insert_norm(layer, norm[0])
    if down is not None and up is not None and len(down) == len(up) == 2 and down[0] == up[1]:
        add_adapter(layer, down[1], up[0], down[0])


def attached_names(name: str) -> set[str]:
    """The names that tensors beside the layer called `name` would have."""
    prefix = f"{name}." if name else ""
    return {prefix + own for own in NAMES}


def _normalised(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    norm: nn.Module = layer.get_submodule(NORM)
    return (norm(args[0]), *args[1:])


def _corrected(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    adapter: nn.Module = layer.get_submodule(ADAPTER)
    correction: Tensor = adapter(args[0])
    return output + correction
