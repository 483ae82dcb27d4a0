"""From the student's width to the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from hybridkit.errors import FileError

KEPT: Final = 0.95  # of what was seen before, at each batch
RIDGE: Final = 1e-4  # of the mean squared feature


class LeastSquares:
    """The affine map of least squares from student's features to the teacher's, over the latest batches.

    TinyBERT learns it by gradient descent; here it is always the best one for what was seen, weighted by
    0.95^age, so it needs no learning rate and belongs to no optimizer. The gradient to the student is that of
    the map as a constant, which at a minimum is the whole gradient. It is no part of the network.

    Args:
        student, teacher: the widths.
    """

    def __init__(self, student: int, teacher: int, device: torch.device) -> None:
        self.gram = torch.zeros(student + 1, student + 1, device=device)
        self.cross = torch.zeros(student + 1, teacher, device=device)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The map of student's [rows, student's width], float32 [rows, teacher's width]."""
        ours = torch.cat([student.float(), student.new_ones(len(student), 1, dtype=torch.float32)], dim=1)
        return ours @ self._solved(ours.detach(), teacher.detach().float())

    @torch.no_grad()
    def _solved(self, ours: Tensor, theirs: Tensor) -> Tensor:
        gram, cross = ours.T @ ours, ours.T @ theirs
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for part in (gram, cross):
                torch.distributed.all_reduce(part)
        self.gram.mul_(KEPT).add_(gram)
        self.cross.mul_(KEPT).add_(cross)
        ridge = RIDGE * self.gram.diagonal().mean().clamp(min=1e-12)
        regular = self.gram + ridge * torch.eye(len(gram), device=gram.device)
        solved: Tensor = torch.linalg.solve(regular, self.cross)
        return solved

    def state_dict(self) -> dict[str, Tensor]:
        """The two sums."""
        return {"gram": self.gram, "cross": self.cross}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises FileError where it does not fit."""
        for name, own in self.state_dict().items():
            found = state.get(name)
            if not isinstance(found, Tensor) or found.shape != own.shape or not bool(found.isfinite().all()):
                raise FileError(f"the saved state is damaged: distillation.{name} is not {list(own.shape)}")
            own.copy_(found)
