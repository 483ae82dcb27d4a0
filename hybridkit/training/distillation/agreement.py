"""How close a student's embeddings are to its teacher's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from hybridkit.tasks.data import Batch
from hybridkit.tasks.protocol import forward
from hybridkit.training.distillation.teaching import Teaching, attention_mask, embedding_of
from hybridkit.training.evaluation import measuring


def embedding_agreement(teaching: Teaching, student: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """`teacher_cosine`, the mean over all samples, and as `loss` what it lacks to 1.

    For networks that say themselves what an embedding is (see `embedding_of`), in evaluation mode.
    """
    total, samples = 0.0, 0
    with measuring(student):
        for batch in batches:
            mask = attention_mask(teaching.task, batch)
            ours = embedding_of(forward(teaching.task, student, batch), None, mask)
            theirs = embedding_of(teaching.answer(batch), None, mask)
            cosines = F.cosine_similarity(ours.float(), theirs.float(), dim=-1)
            total += float(cosines.sum(dtype=torch.float64))
            samples += len(cosines)
    mean = total / max(samples, 1)
    return {"loss": 1 - mean, "teacher_cosine": mean}
