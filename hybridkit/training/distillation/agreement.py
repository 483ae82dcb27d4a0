"""How close a student is to its teacher on data that neither learns from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridkit.tasks.data import Batch, on
from hybridkit.training.distillation.losses import positions
from hybridkit.training.distillation.teaching import Teaching, attention_mask, embedding_of
from hybridkit.trees import main_output


class Agreement:
    """A `Meter` of a student beside its teacher.

    Where the data say nothing but by the teacher (see `Objective`): `teacher_cosine`, the mean cosine of
    the embeddings, and as `loss` what it lacks to 1. Where logits are learned from: `teacher_kl`, the mean of
    KL(teacher || student) in nats, and `teacher_top1`, the share of positions where both have the same
    first choice.
    """

    def __init__(self, teaching: Teaching) -> None:
        self.teaching = teaching
        self._embeds = bool(getattr(teaching.task, "needs_teacher", False))
        self._sums: dict[str, float] = {}
        self._count = 0

    @torch.no_grad()
    def add(self, output: Any, batch: Batch, values: Mapping[str, float]) -> None:
        """Run the teacher on a batch that the student has run on, and compare."""
        if not self._embeds and "logits" not in self.teaching.weights:
            return
        expert = self.teaching.answer(on(batch, self.teaching.device))
        mask = attention_mask(self.teaching.task, batch)
        self._note(**(cosines if self._embeds else divergences)(output, expert, mask))

    def _note(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.sum(dtype=torch.float64))
        self._count += len(next(iter(values.values())))

    def result(self) -> dict[str, float]:
        """The means so far."""
        means = {name: total / max(self._count, 1) for name, total in self._sums.items()}
        return {"loss": 1 - means["teacher_cosine"], **means} if "teacher_cosine" in means else means


def cosines(student: Any, teacher: Any, mask: Tensor | None) -> dict[str, Tensor]:
    """`teacher_cosine`, [batch], of the embeddings in two outputs; mask: positions that count."""
    ours, theirs = (embedding_of(output, None, mask) for output in (student, teacher))
    return {"teacher_cosine": F.cosine_similarity(ours.float(), theirs.to(ours.device).float(), dim=-1)}


def divergences(student: Any, teacher: Any, mask: Tensor | None) -> dict[str, Tensor]:
    """`teacher_kl` and `teacher_top1` of the logits in two outputs, [positions that count]."""
    ours, theirs = main_output(student), main_output(teacher)
    kept = positions(ours, mask)
    found: dict[str, list[Tensor]] = {"teacher_kl": [], "teacher_top1": []}
    # sample by sample: those of a vocabulary are too many to hold several copies of all
    for sample, (a, b) in enumerate(zip(ours, theirs.to(ours.device), strict=True)):
        rows = [(x if kept is None else x[kept[sample]]).reshape(-1, x.shape[-1]).float() for x in (a, b)]
        log_student, log_teacher = (F.log_softmax(x, dim=-1) for x in rows)
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
        found["teacher_kl"].append(divergence.sum(-1))
        found["teacher_top1"].append((log_student.argmax(-1) == log_teacher.argmax(-1)).float())
    return {name: torch.cat(values) for name, values in found.items()}
