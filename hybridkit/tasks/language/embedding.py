"""Vectors of sentences: learned from a teacher's, from given ones, or from scored pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.calls import Inputs
from hybridkit.errors import FileError
from hybridkit.pretrained import Pretrained
from hybridkit.tasks.datafiles import Part
from hybridkit.tasks.language.pooling import SentenceEncoder, described_pooling
from hybridkit.tasks.language.sentences import SentenceOptions, SentenceTask
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.rows import Rows, column, cut_at_random, has_column, values, with_all_parts
from hybridkit.trees import main_output

SCORES: Final = ("score", "similarity_score", "similarity", "label")
SHARPNESS: Final = 20.0  # of the comparison of cosines, as CoSENT's


class TextEmbedding(SentenceTask):
    """The network gives `embedding`, float [texts, hidden], out of `input_ids` and `attention_mask`.

    Sentences without labels: int64 [batch, sequence]; the loss is 0, and a teacher must give the rest. Pairs
    with a score: int64 [batch, 2, sequence] and `labels`, float [batch]; the loss is CoSENT's (Su 2022).
    """

    name = "text-embedding"
    input_names: tuple[str, ...] = ("input_ids", "attention_mask")
    Options = SentenceOptions

    def __init__(self, options: SentenceOptions | None = None) -> None:
        self.options = options or SentenceOptions()
        super().__init__(self.options)
        self.metric, self.metric_goal = "loss", "min"

    @cached_property
    def needs_teacher(self) -> bool:
        """Whether the data say nothing about what an embedding should be."""
        return self._score_column is None

    @cached_property
    def _score_column(self) -> str | None:
        """The column with the scores of pairs, where there are pairs and scores."""
        asked, train = self.options.label_column, self._tables["train"]
        if asked or (len(self._text_columns) == 2 and has_column(train, "", SCORES)):
            return column(train, asked, SCORES, "label_column", self._where)
        return None

    @property
    def _texts(self) -> list[str]:
        return self._text_columns if self._score_column else self._text_columns[:1]

    @cached_property
    def _all_rows(self) -> Mapping[Part, Rows]:
        scores = {part: self._scores(part) for part in self._tables}
        parts = {part: self._rows(table, scores[part]) for part, table in self._tables.items()}
        return with_all_parts(parts, cut_at_random, self._where)

    def _scores(self, part: Part) -> NDArray[np.float64] | None:
        """float64 [rows]. Raises FileError for one that is no number."""
        name = self._score_column
        if name is None:
            return None
        found = []
        for row, value in enumerate(values(self._tables[part], name)):
            try:
                score = float(value)
            except (TypeError, ValueError):
                score = float("nan")
            if not np.isfinite(score):
                raise FileError(
                    f"{self._where}: row {row} of the {part} data has the {name} {value!r}, no number"
                )
            found.append(score)
        return np.array(found, np.float64)

    def _load(self) -> Splits:
        rows = self._all_rows
        if not self.needs_teacher:
            self.metric, self.metric_goal = "spearman", "max"
        return Splits(rows["train"], rows["validation"].longest_first, rows["test"].longest_first)

    def _network(self, found: Pretrained) -> nn.Module:
        pooling, normalize = described_pooling(found.folder)
        network = self._prepared(found, found.network())
        encoder: Any = getattr(network, "base_model", network)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # a head of the first token that no embedding passes
        return SentenceEncoder(encoder, pooling, normalize).eval()

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One batch, padded to its longest text."""
        if "text2" not in samples[0]:
            return self._tokens([sample["text"] for sample in samples])
        texts = [sample[name] for sample in samples for name in ("text", "text2")]
        tokens = {name: x.view(len(samples), 2, -1) for name, x in self._tokens(texts).items()}
        scores = torch.tensor([sample["label"] for sample in samples], dtype=torch.float32)
        return tokens | {"labels": scores}

    def inputs(self, batch: Mapping[str, Tensor]) -> Inputs:
        """The texts one below the other: [batch, sequence], or [2 * batch, sequence] of pairs."""
        return {name: batch[name].flatten(0, -2) for name in self.input_names}

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """CoSENT's loss of scored pairs, else 0; 0-d."""
        embedding = main_output(output)
        if "labels" not in batch:
            return (embedding * 0).sum()
        return cosent(_cosines(embedding), batch["labels"])

    def metrics(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Loss, and Spearman's correlation of cosines and scores where there are scores."""
        found = {"loss": float(self.loss(output, batch))}
        if "labels" in batch:
            found["spearman"] = spearman(_cosines(main_output(output)), batch["labels"])
        return found

    def meter(self) -> Ranks:
        """Spearman's correlation over a whole part."""
        return Ranks()


class Ranks:
    """Spearman's correlation of cosines and scores over whole data. It is a `Meter`."""

    def __init__(self) -> None:
        self._cosines: list[Tensor] = []
        self._scores: list[Tensor] = []

    def add(self, output: Any, batch: Mapping[str, Tensor], values: Mapping[str, float]) -> None:
        """Take note of a batch."""
        if "labels" in batch:
            self._cosines.append(_cosines(main_output(output)).cpu())
            self._scores.append(batch["labels"].cpu())

    def result(self) -> dict[str, float]:
        """What was found so far."""
        if not self._scores:
            return {}
        return {"spearman": spearman(torch.cat(self._cosines), torch.cat(self._scores))}


def cosent(cosines: Tensor, scores: Tensor) -> Tensor:
    """log(1 + sum of exp(20 (cos_j - cos_i)) over pairs i, j with score_i > score_j), 0-d; all [batch]."""
    differences = SHARPNESS * (cosines[None, :] - cosines[:, None])
    wrong = differences.masked_fill(scores[:, None] <= scores[None, :], float("-inf"))
    return torch.cat([wrong.new_zeros(1), wrong.flatten()]).logsumexp(0)


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where one is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(v.detach().cpu().double().numpy()) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def _cosines(embedding: Tensor) -> Tensor:
    """Of the pairs that lie one below the other: [2 * pairs, hidden] -> [pairs]."""
    return F.cosine_similarity(embedding[0::2].float(), embedding[1::2].float())
