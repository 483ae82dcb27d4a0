"""How far a quantised network is from the original: by outputs, and by the task's metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybridkit.tasks.data import Batch
from hybridkit.tasks.protocol import Task, forward
from hybridkit.tasks.samples import some
from hybridkit.training.distillation.agreement import cosines, divergences
from hybridkit.training.distillation.teaching import EMBEDDING, attention_mask
from hybridkit.training.evaluation import batches, evaluate, measuring
from hybridkit.trees import MAIN, floating, main_output

BATCH = 8  # samples that are measured at once
COSINE = "cosine"


def distance_from(
    outputs: Sequence[Any], counted: Sequence[Tensor | None]
) -> Callable[[Sequence[Any]], float]:
    """A function of other outputs, batch by batch: their mean distance from these, 0 or more.

    1 - cosine of embeddings where an output has them or hidden states, KL in nats where it has logits; else
    the squared error beside the variance. counted: the positions that count, or None for all.
    """

    def distance(others: Sequence[Any]) -> float:
        each = [_apart(*three) for three in zip(others, outputs, counted, strict=True)]
        return max(float(torch.cat(each).mean(dtype=torch.float64)), 0.0)

    return distance


def _apart(ours: Any, theirs: Any, mask: Tensor | None) -> Tensor:
    named = floating(theirs)
    if MAIN in named:
        return divergences(ours, theirs, mask)["teacher_kl"]
    if EMBEDDING in named or main_output(theirs).dim() == 3:
        return 1 - cosines(ours, theirs, mask)["teacher_cosine"]
    target = main_output(theirs).float()
    off = (main_output(ours).float() - target).square().flatten(1).mean(dim=1)
    return off / target.var(correction=0).clamp(min=1e-12)


class Quality:
    """What a network loses of the task's metric, on samples of the validation data.

    Where the data say nothing but by a teacher, as sentences without labels do, it is what the mean cosine to
    the embeddings of the original lacks to 1.

    metric: its name. Raises UsageError where there are no data for validation.
    """

    def __init__(self, task: Task, original: nn.Module, samples: int) -> None:
        self.task, self._data = task, some(task.splits().validation, samples)
        self._embeds = bool(getattr(task, "needs_teacher", False))
        self.metric = COSINE if self._embeds else task.metric
        self._answers = self._outputs(original) if self._embeds else []
        self._before = 0.0 if self._embeds else self._value(original)

    def lost(self, network: nn.Module) -> float:
        """As a share of the original's; below 0 where it is better."""
        if self._embeds:
            found = []
            for batch, ours, theirs in zip(
                self._batches(), self._outputs(network), self._answers, strict=True
            ):
                found.append(cosines(ours, theirs, attention_mask(self.task, batch))["teacher_cosine"])
            return 1 - float(torch.cat(found).mean(dtype=torch.float64))
        change = (self._value(network) - self._before) / max(abs(self._before), 1e-12)
        return change if self.task.metric_goal == "min" else -change

    def likely_harm(self, lost: float) -> float:
        """The distance of outputs that probably loses so much: perplexity is the exponential of a KL."""
        return math.log1p(lost) if self.metric == "perplexity" else lost

    def _batches(self) -> list[Batch]:
        return list(batches(self.task, self._data, BATCH))

    def _outputs(self, network: nn.Module) -> list[Any]:
        with measuring(network):
            return [forward(self.task, network, batch) for batch in self._batches()]

    def _value(self, network: nn.Module) -> float:
        return evaluate(network, self.task, self._data, batch_size=BATCH)[self.metric]
