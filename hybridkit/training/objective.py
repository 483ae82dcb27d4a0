"""What is minimised: the task's loss, alone or mixed with what a teacher says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from hybridkit.tasks.data import Batch
from hybridkit.tasks.protocol import Task
from hybridkit.training.distillation.progressive import BlockOutput, Progressive
from hybridkit.training.distillation.teaching import Teaching


class Objective:
    """loss = alpha * task + (1 - alpha) * sum of weight * term over the teacher's terms, or the task's alone.

    Where the task needs a teacher (embeddings without labels) the teacher's terms count whole, alpha not at
    all. With `progressive` the run begins block by block.
    """

    def __init__(
        self,
        task: Task,
        teaching: Teaching | None = None,
        alpha: float = 0.5,
        progressive: Progressive | None = None,
    ) -> None:
        self.task, self.teaching, self.alpha, self.progressive = task, teaching, alpha, progressive
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen network that is learned from."""
        return self.teaching.teacher if self.teaching else None

    def stage(self, model: nn.Module, step: int) -> Callable[[Batch], BlockOutput] | None:
        """What runs `model` in this step (from 0), as far as a block; None: the task's forward does."""
        block = self.progressive.block(step) if self.progressive else None
        if self.progressive is None or block is None:
            return None
        return partial(self.progressive.run, model, place=block)

    def again(self, output: Any, batch: Batch) -> Tensor:
        """The same as a call, for a batch that is in the report already."""
        sums, count = dict(self._sums), self._count
        loss = self(output, batch)
        self._sums, self._count = sums, count
        return loss

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """The objective for the model's output on a batch, 0-d."""
        if isinstance(output, BlockOutput):
            assert self.progressive is not None
            loss = self.progressive.loss(output, batch)
            return self._noted({"distil_block": loss}, loss)
        loss = self.task.loss(output, batch)
        if self.teaching is None:
            return loss
        terms = self.teaching(output, batch)
        parts = [self.teaching.weights[name] * value for name, value in terms.items()]
        taught = sum(parts[1:], start=parts[0])
        noted = {f"distil_{name}": value for name, value in terms.items()}
        if getattr(self.task, "needs_teacher", False):
            return self._noted(noted, taught)
        return self._noted(noted, self.alpha * loss + (1 - self.alpha) * taught)

    def report(self) -> dict[str, float]:
        """Each of the teacher's terms, its mean over the batches since the last report."""
        found = {name: float(value) / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return found

    def state_dict(self) -> dict[str, Any]:
        """What is learned beside the network."""
        return self.teaching.state_dict() if self.teaching else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises FileError where it does not fit."""
        if self.teaching:
            self.teaching.load_state_dict(state)

    def _noted(self, terms: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._count += 1
        return loss
