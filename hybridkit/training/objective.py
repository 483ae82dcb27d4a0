"""What is minimised: the task's loss, alone or mixed with a teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridkit.tasks.data import Batch
from hybridkit.tasks.protocol import Task, forward
from hybridkit.training.distillation import distillation_loss
from hybridkit.trees import main_output


@dataclass(frozen=True, slots=True)
class Objective:
    """loss = alpha * task + (1 - alpha) * T^2 * KL(teacher || student), or the task's alone."""

    task: Task
    teacher: nn.Module | None = None
    temperature: float = 2.0
    alpha: float = 0.5

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """The objective for the model's output on a batch, 0-d."""
        loss = self.task.loss(output, batch)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            expert = main_output(forward(self.task, self.teacher, batch))
        ours = main_output(output)
        return self.alpha * loss + (1 - self.alpha) * distillation_loss(ours, expert, self.temperature)
