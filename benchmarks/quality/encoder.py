"""A sentence encoder quantised without training: quality by bytes of the file, beside other tools.

    python benchmarks/quality/encoder.py FOLDER --data DATA [--ours NAME=FILE ...] [--out RESULT.json]

FOLDER is a sentence encoder of Hugging Face layout, DATA what benchmarks/distillation/sentences.py wrote.
Each row is a network whose weights are what a tool stores: the mean cosine of 2,048 sentences of novels to
the original's, and Spearman's correlation on the STS benchmark. Importances are of 2,048 sentences of the
training text, about as many tokens as 128 blocks of 512. Bytes as in decoder.py.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.quality.rows import parser_of, write_rows
from hybridkit.pretrained import open_pretrained
from hybridkit.tasks.language.embedding import spearman
from hybridkit.training.distillation.losses import pooled

CALIBRATED, AT_ONCE, LONGEST = 2_048, 32, 128


def main() -> None:
    """Measure every row."""
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    opened = open_pretrained(str(options.folder))
    network, tokenizer = opened.network().eval().requires_grad_(False), opened.tokenizer()
    lines = (options.data / "sentences" / "test.txt").read_text("utf-8").splitlines()
    train = (options.data / "sentences" / "train.txt").read_text("utf-8").splitlines()[:CALIBRATED]
    with (options.data / "sts" / "test.csv").open(encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file))
    original = vectors(network, tokenizer, lines)

    def measure(ours: nn.Module) -> dict[str, float]:
        cosine = F.cosine_similarity(vectors(ours, tokenizer, lines), original).mean()
        return {"cosine": float(cosine), "spearman": sts(ours, tokenizer, pairs)}

    write_rows(network, measure, lambda: vectors(network, tokenizer, train), options)


@torch.no_grad()
def vectors(network: nn.Module, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """The mean of the last hidden states of each text, [texts, width]."""
    found = []
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # little padding
    for start in range(0, len(texts), AT_ONCE):
        some = [texts[place] for place in order[start : start + AT_ONCE]]
        batch = tokenizer(some, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found.append(pooled(network(**given).last_hidden_state, batch["attention_mask"]))
    return torch.cat(found)[torch.tensor(order).argsort()]


def sts(network: nn.Module, tokenizer: Any, pairs: Sequence[dict[str, str]]) -> float:
    """Spearman's correlation of cosines and scores, times 100."""
    a, b = (vectors(network, tokenizer, [pair[key] for pair in pairs]) for key in ("sentence1", "sentence2"))
    return 100 * spearman(F.cosine_similarity(a, b), torch.tensor([float(pair["score"]) for pair in pairs]))


if __name__ == "__main__":
    main()
