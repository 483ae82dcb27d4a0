"""FSDP2: each process keeps a piece of every parameter, and has a block's whole weights while it computes.

Zhao et al. 2023, arXiv 2304.11277, as torch's `fully_shard`. Quantised layers see whole weights in their
forward, so scales and codes are those of one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from hybridkit.errors import UsageError
from hybridkit.optim.groups import parameters_of
from hybridkit.training.blocks import repeated_blocks
from hybridkit.training.config import TrainConfig
from hybridkit.trees import map_tensors

WHOLE_MATRICES = ("steepest", "muon")  # optimizers whose step needs them


def check_shardable(config: TrainConfig) -> None:
    """Raise UsageError where a step needs whole matrices."""
    part = config.optimizer if config.optimizer in WHOLE_MATRICES else None
    if config.uses_hybrid_optimizer:
        part = "a learning-rate controller or trust region"
    if part:
        raise UsageError(
            f"--shard: {part} needs whole matrices, of which each process has a piece; without --shard the "
            "processes train with DDP"
        )


def shard_(model: nn.Module, device: str, processes: int) -> None:
    """Shard the parameters of `model` in place, block by block; make its optimizer afterwards."""
    mesh = init_device_mesh(device.partition(":")[0], (processes,))
    for block in repeated_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tree: Any) -> Any:
    """`tree` with whole tensors for sharded ones. Every process has to ask; each gets all."""
    return map_tensors(lambda t: t.full_tensor() if isinstance(t, DTensor) else t, tree)


def sharded(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's `state` of whole tensors, sharded as its parameters are."""
    parameters = dict(enumerate(parameters_of(optimizer)))
    states = {
        index: {name: _like(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": states}


def _like(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
