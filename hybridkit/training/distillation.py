"""Distillation: learning from a teacher's output too (Hinton, Vinyals & Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.tasks.data import Batch
from hybridkit.tasks.protocol import Task, forward
from hybridkit.trees import main_output


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the distributions softened by T, mean over all positions, 0-d.

    Both outputs are logits [..., classes] of one shape. T^2 keeps the gradient's size independent of T.
    """
    log_student = F.log_softmax(student.flatten(0, -2) / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.flatten(0, -2) / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def check_teacher(task: Task, teacher: nn.Module, student: nn.Module, batch: Batch) -> None:
    """Raise UsageError unless both networks take `batch` and answer with logits of one shape."""
    was_training = student.training
    try:
        with torch.no_grad():
            theirs = main_output(forward(task, teacher, batch))
            ours = main_output(forward(task, student.eval(), batch))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UsageError(
            f"--teacher: does not take this task's input ({str(error).splitlines()[0]})"
        ) from None
    finally:
        student.train(was_training)
    if theirs.shape != ours.shape:
        shapes = f"{list(theirs.shape)}, the student's {list(ours.shape)}"
        raise UsageError(f"--teacher: its output is {shapes}; they must agree")
