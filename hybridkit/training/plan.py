"""What a run would be, found out without starting it: one step in memory, then everything is counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hybridkit.quant.convert import convert
from hybridkit.quant.layers import set_ramp
from hybridkit.training.config import TrainConfig
from hybridkit.training.packed import quantise_afterwards
from hybridkit.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of a run. `memory_bytes`: weights, gradients, buffers, optimizer state; activations on top."""

    parameters: int
    quantised_weights: int
    bits_per_weight: float  # on the disk, of the quantised weights; 32 where nothing is quantised
    packed_bytes: int  # of the packed file; 0 where there is none
    memory_bytes: int
    steps_per_epoch: int
    total_steps: int


def plan(config: TrainConfig) -> Plan:
    """Build everything, take one step to prove that it fits together, and count.

    Raises what the run itself would raise. Writes nothing.
    """
    trainer = Trainer.seeded(config)
    trainer.step()
    sizes = None
    if config.qat:
        set_ramp(trainer.model, 1)  # what the end of the run will pack
        sizes = convert(trainer.model).sizes()
    elif config.ternary:
        sizes = quantise_afterwards(config, trainer.model).sizes()
    parameters = list(trainer.model.parameters())
    held = [*parameters, *(p.grad for p in parameters if p.grad is not None), *trainer.model.buffers()]
    held += list(tensors_in(trainer.optimizer.state_dict()))
    return Plan(
        parameters=sum(p.numel() for p in parameters),
        quantised_weights=sizes.weights if sizes else 0,
        bits_per_weight=sizes.bits_per_weight if sizes else 32.0,
        packed_bytes=sizes.file_bytes if sizes else 0,
        memory_bytes=sum(tensor.nbytes for tensor in held),
        steps_per_epoch=trainer.feed.steps_per_epoch,
        total_steps=trainer.total_steps,
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nested state."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
