"""How well samples are put into classes: the loss and metrics that classification tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridkit.trees import main_output


class ByClass:
    """Part of a `Task` whose network gives logits [batch, classes] for `labels`, int64 [batch]."""

    metric: ClassVar[str] = "accuracy"
    metric_goal: ClassVar[Literal["max", "min"]] = "max"

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy, 0-d."""
        return F.cross_entropy(main_output(output).float(), batch["labels"])

    def metrics(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Loss, accuracy and macro F1."""
        guessed, labels = main_output(output).argmax(-1), batch["labels"]
        return {
            "loss": float(self.loss(output, batch)),
            "accuracy": float((guessed == labels).float().mean()),
            "macro_f1": macro_f1(labels, guessed),
        }

    def meter(self) -> Confusion:
        """Macro F1 of a whole part."""
        return Confusion()


class Confusion:
    """Accuracy and macro F1 of whole data. It is a `Meter`."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], int] = {}

    def add(self, output: Any, batch: Mapping[str, Tensor], values: Mapping[str, float]) -> None:
        """Take note of a batch."""
        guessed = main_output(output).argmax(-1).tolist()
        for pair in zip(batch["labels"].tolist(), guessed, strict=True):
            self._counts[pair] = self._counts.get(pair, 0) + 1

    def result(self) -> dict[str, float]:
        """What was found so far."""
        pairs = torch.tensor(list(self._counts)).view(-1, 2)
        weights = torch.tensor(list(self._counts.values()), dtype=torch.float64)
        return {"macro_f1": macro_f1(pairs[:, 0], pairs[:, 1], weights)}


def macro_f1(labels: Tensor, guessed: Tensor, weights: Tensor | None = None) -> float:
    """The mean over classes that are there of 2 tp / (2 tp + fp + fn); labels, guesses: int64 [samples]."""
    labels, guessed = labels.cpu(), guessed.cpu()
    weights = torch.ones(len(labels), dtype=torch.float64) if weights is None else weights
    scores = []
    for number in set(labels.tolist()) | set(guessed.tolist()):
        is_it, said_it = labels == number, guessed == number
        hits = weights[is_it & said_it].sum()
        scores.append(2 * hits / (weights[is_it].sum() + weights[said_it].sum()))
    return float(torch.stack(scores).mean()) if scores else 0.0
