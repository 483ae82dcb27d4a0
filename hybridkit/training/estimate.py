"""What a run would be, found out without starting it: one step in memory, then everything is counted."""

from __future__ import annotations

from dataclasses import dataclass

from hybridkit.quant.convert import convert
from hybridkit.quant.layers import set_ramp
from hybridkit.training.config import TrainConfig
from hybridkit.training.packed import quantize_afterwards
from hybridkit.training.trainer import Trainer
from hybridkit.trees import tensors


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sizes of a run.

    `memory_bytes`: weights, gradients, buffers, optimizer state, the teacher; activations come on top.
    """

    parameters: int
    quantized_weights: int
    bits_per_weight: float  # on the disk, of the quantised weights; 32 where nothing is quantised
    packed_bytes: int  # of the packed file; 0 where there is none
    memory_bytes: int
    steps_per_epoch: int
    total_steps: int


def estimate(config: TrainConfig) -> Estimate:
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
        sizes = quantize_afterwards(config, trainer.model).sizes()
    parameters = list(trainer.model.parameters())
    held = [*parameters, *(p.grad for p in parameters if p.grad is not None), *trainer.model.buffers()]
    held += list(tensors(trainer.optimizer.state_dict()))
    if (teacher := trainer.objective.teacher) is not None:
        held += list(teacher.state_dict().values())
    return Estimate(
        parameters=sum(p.numel() for p in parameters),
        quantized_weights=sizes.weights if sizes else 0,
        bits_per_weight=sizes.bits_per_weight if sizes else 32.0,
        packed_bytes=sizes.file_bytes if sizes else 0,
        memory_bytes=sum(tensor.nbytes for tensor in held),
        steps_per_epoch=trainer.steps_per_epoch,
        total_steps=trainer.total_steps,
    )
