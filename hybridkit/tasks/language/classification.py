"""Classes of texts, or of pairs of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hybridkit.pretrained import Pretrained
from hybridkit.tasks.classes import ByClass
from hybridkit.tasks.datafiles import Part
from hybridkit.tasks.labels import LABELS, Labels, with_head
from hybridkit.tasks.language.sentences import SentenceOptions, SentenceTask
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.rows import Rows, column, cut_by_class, with_all_parts


class TextClassification(ByClass, SentenceTask):
    """Batches of `input_ids`, `attention_mask` (`token_type_ids` for pairs) and `labels`, int64 [batch]."""

    name = "text-classification"
    Options = SentenceOptions

    def __init__(self, options: SentenceOptions | None = None) -> None:
        self.options = options or SentenceOptions()
        super().__init__(self.options)

    @cached_property
    def labels(self) -> Labels:
        """The classes of the data, in the network's order where it knows them."""
        name = column(self._tables["train"], self.options.label_column, LABELS, "label_column", self._where)
        found = Labels(self._tables, name, self._where)
        return found.reordered(self._opened(self.options.model).config) if self.models else found

    @cached_property
    def _all_rows(self) -> Mapping[Part, Rows]:
        labels = self.labels.parts
        parts = {part: self._rows(self._tables[part], labels[part]) for part in labels}
        return with_all_parts(parts, cut_by_class, self._where)

    def _load(self) -> Splits:
        rows = self._all_rows
        return Splits(rows["train"], rows["validation"].longest_first, rows["test"].longest_first)

    def _network(self, found: Pretrained) -> Any:
        if not found.has_weights:  # what belongs to a network that had its head
            return self._prepared(found, found.network("text-classification"))
        return self._prepared(found, with_head(found, "text-classification", self.labels.names))

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One batch, padded to its longest text."""
        seconds = [sample["text2"] for sample in samples] if "text2" in samples[0] else None
        tokens = self._tokens([sample["text"] for sample in samples], seconds)
        return tokens | {"labels": torch.tensor([sample["label"] for sample in samples])}
