"""Causal language modelling: the next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridkit.tasks.language.corpus import CorpusOptions, CorpusTask, PerToken, of_nats
from hybridkit.trees import main_output


class CausalLM(CorpusTask):
    """Batches of `input_ids`, `attention_mask` (all ones) and `labels`, int64 [batch, sequence].

    Labels are the inputs; the loss compares position i's logits with label i + 1. `bytes`, float [batch], is
    the text that the labels from the second on stand for.
    """

    name = "causal-lm"
    head = "causal-lm"
    Options = CorpusOptions

    def collate(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """One batch of blocks."""
        ids = torch.stack([sample["input_ids"] for sample in samples])
        share = (ids.shape[1] - 1) / ids.shape[1]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids,
            "bytes": torch.stack([sample["bytes"] for sample in samples]) * share,
        }

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy in nats per token, 0-d."""
        # the last logits have no target; without them the rest would be a copy
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        return F.cross_entropy(main_output(output).flatten(0, 1).float(), targets.flatten())

    def metrics(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Loss, accuracy of the likeliest token, perplexity and bits per byte."""
        targets = batch["labels"][:, 1:]
        right = (main_output(output)[:, :-1].argmax(-1) == targets).float().mean()
        loss = float(self.loss(output, batch))
        known = float(batch["bytes"].sum()) if "bytes" in batch else 0.0
        return {
            "loss": loss,
            "accuracy": float(right),
            **of_nats(loss * targets.numel(), targets.numel(), known),
        }

    def meter(self) -> PerToken:
        """Perplexity and bits per byte of a whole part."""
        return PerToken(lambda batch: batch["labels"][:, 1:].numel())
