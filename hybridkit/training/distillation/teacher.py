"""The teacher: whether it fits, and the type that it computes in."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.tasks.data import Batch
from hybridkit.tasks.protocol import forward
from hybridkit.training.distillation.teaching import Teaching
from hybridkit.trees import main_output

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: Final[dict[Dtype, torch.dtype]] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def cast_(network: nn.Module, dtype: Dtype) -> nn.Module:
    """`network` with the floating-point tensors of its state dict in `dtype`, in place.

    Tables that it computes for itself, as of rotary positions, keep their precision.
    """
    if dtype != "fp32":
        for tensor in network.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(DTYPES[dtype])
    return network


def drop_nothing_(network: nn.Module) -> None:
    """Switch dropout off, in place: where a teacher is all there is to learn from, it is mere noise."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def check_teacher(teaching: Teaching, student: nn.Module, batch: Batch) -> None:
    """Raise UsageError unless both networks take `batch` and what they give can be compared."""
    task, was_training = teaching.task, student.training
    try:
        with torch.no_grad():
            theirs = main_output(forward(task, teaching.teacher, batch))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        raise UsageError(
            f"--teacher: does not take this task's input ({str(error).splitlines()[0]})"
        ) from None
    try:
        output = forward(task, student.eval(), batch)  # with gradients, so that it is watched
        ours = main_output(output)
        if "logits" in teaching.weights and theirs.shape != ours.shape:
            shapes = f"{list(theirs.shape)}, the student's {list(ours.shape)}"
            raise UsageError(f"--teacher: its output is {shapes}; they must agree")
        teaching(output, batch)
    except RuntimeError as error:
        raise UsageError(
            f"--teacher: cannot be compared with the student ({str(error).splitlines()[0]}); other terms "
            "of --distil may do"
        ) from None
    finally:
        student.train(was_training)
