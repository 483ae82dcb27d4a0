"""Masked language modelling: tokens that were covered (Devlin et al. 2019, arXiv 1810.04805)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import torch
import torch.nn.functional as F
from annotated_types import Gt, Lt
from torch import Tensor

from hybridkit.errors import UsageError
from hybridkit.options import option
from hybridkit.tasks.language.corpus import CorpusOptions, CorpusTask, PerToken, of_nats
from hybridkit.trees import main_output

IGNORED: Final = -100  # label of a token that was not covered


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedOptions(CorpusOptions):
    """Options of masked language modelling."""

    mask_share: Annotated[float, Gt(0), Lt(1)] = option(0.15, "share of the tokens that are covered")


class MaskedLM(CorpusTask):
    """Batches of `input_ids`, `attention_mask` (all ones) and `labels`, int64 [batch, sequence].

    A share of each block's tokens is covered: 80 % by the mask, 10 % by a random token, 10 % stay. Which ones
    follows from the tokens of the whole batch: every epoch, in which a block has other neighbours, covers
    others, the same batch always the same, so that validation and a resumed run repeat exactly.
    """

    name = "masked-lm"
    head = "masked-lm"
    Options = MaskedOptions

    def __init__(self, options: MaskedOptions | None = None) -> None:
        super().__init__(options or MaskedOptions())
        self._share = options.mask_share if options else 0.15

    @property
    def _cut_length(self) -> int:
        return self.sequence_length - sum(x is not None for x in self._ends)

    @property
    def _ends(self) -> tuple[int | None, int | None]:
        return self.tokenizer.cls_token_id, self.tokenizer.sep_token_id

    def collate(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """One batch of blocks, between the tokens that the tokenizer puts at both ends, some covered."""
        blocks = torch.stack([sample["input_ids"] for sample in samples])
        begin, end = (
            [] if x is None else [torch.full((len(blocks), 1), x, dtype=torch.int64)] for x in self._ends
        )
        whole = torch.cat([*begin, blocks, *end], 1)
        tokenizer = self.tokenizer
        if tokenizer.mask_token_id is None:
            raise UsageError(f"task {self.name}: the tokenizer has no mask token; causal-lm needs none")
        special = torch.isin(whole, torch.tensor(tokenizer.all_special_ids))
        ids, labels = covered(whole, special, self._share, tokenizer.mask_token_id, len(tokenizer))
        sizes = torch.stack([sample["bytes"] for sample in samples])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": labels,
            "bytes": sizes * (labels != IGNORED).sum(1) / blocks.shape[1],
        }

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy in nats per covered token, 0-d."""
        logits, labels = main_output(output), batch["labels"]
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)

    def metrics(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Loss, accuracy, perplexity and bits per byte of the covered tokens."""
        labels = batch["labels"]
        hidden = labels != IGNORED
        right = (main_output(output).argmax(-1) == labels)[hidden].float().mean()
        loss, count = float(self.loss(output, batch)), int(hidden.sum())
        known = float(batch["bytes"].sum()) if "bytes" in batch else 0.0
        return {"loss": loss, "accuracy": float(right), **of_nats(loss * count, count, known)}

    def meter(self) -> PerToken:
        """Perplexity and bits per byte of a whole part."""
        return PerToken(lambda batch: (batch["labels"] != IGNORED).sum())


def covered(ids: Tensor, special: Tensor, share: float, mask: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Inputs with some tokens covered, and labels, `IGNORED` elsewhere; both as `ids`, int64 [batch, n].

    Of the tokens of a row that are not `special` (bool [batch, n]) a `share`, rounded, but one at least; of
    them 80 % become `mask`, 10 % one of `vocabulary` tokens. The choice is a function of `ids` alone.
    """
    random = torch.Generator().manual_seed(zlib.crc32(ids.contiguous().numpy().tobytes()))
    free = (~special).sum(1, keepdim=True)
    wanted = (free * share).round().clamp(min=1).minimum(free)
    order = torch.rand(ids.shape, generator=random).masked_fill(special, 2.0).argsort(1).argsort(1)
    chosen = order < wanted
    how = torch.rand(ids.shape, generator=random)
    others = torch.randint(vocabulary, ids.shape, generator=random)
    labels = ids.where(chosen, torch.tensor(IGNORED))
    inputs = ids.masked_fill(chosen & (how < 0.8), mask)
    return torch.where(chosen & (how >= 0.8) & (how < 0.9), others, inputs), labels
