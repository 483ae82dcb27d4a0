"""A sentence encoder quantised without training: quality by bytes of the file, beside other tools.

    python benchmarks/quality/encoder.py FOLDER --data DATA [--ours NAME=FILE ...] [--out RESULT.json]

FOLDER is a sentence encoder of Hugging Face layout, DATA what benchmarks/distillation/sentences.py wrote.
Each row is a network whose weights are what a tool stores: the mean cosine of 2,048 sentences of novels to
the original's, and Spearman's correlation on the STS benchmark. Importances are of 512 sentences of the
training text. Bytes as in decoder.py.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.quality.decoder import say
from benchmarks.quality.peers import PEERS
from benchmarks.quality.storing import importances, stored
from hybridkit.bench.machine import this_machine
from hybridkit.packing.atomic import atomic_file
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained import open_pretrained
from hybridkit.runtime.modules import load_packed
from hybridkit.tasks.language.embedding import spearman
from hybridkit.training.distillation.losses import pooled

CALIBRATED, AT_ONCE, LONGEST = 512, 32, 128


def main() -> None:
    """Measure every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("--data", type=Path, required=True)
    add("--ours", nargs="*", default=[], metavar="NAME=FILE")
    add("--peers", nargs="*", metavar="NAME", help="these alone (all); none: no peer")
    add("--out", type=Path)
    options = parser.parse_args()
    opened = open_pretrained(str(options.folder))
    network, tokenizer = opened.network().eval().requires_grad_(False), opened.tokenizer()
    lines = (options.data / "sentences" / "test.txt").read_text("utf-8").splitlines()
    with (options.data / "sts" / "test.csv").open(encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file))
    original = vectors(network, tokenizer, lines)

    def row(name: str, size: int, ours: nn.Module) -> dict[str, Any]:
        cosine = F.cosine_similarity(vectors(ours, tokenizer, lines), original).mean()
        return {"name": name, "bytes": size, "cosine": float(cosine), "spearman": sts(ours, tokenizer, pairs)}

    rows = [row("original, fp32", sum(p.nbytes for p in network.parameters()), network)]
    say(rows[-1])
    for text in options.ours:
        name, _, file = text.rpartition("=")
        packed = load_packed(network, PackedModel.load(file))
        rows.append(row(name, Path(file).stat().st_size, packed))
        say(rows[-1])
    chosen = [peer for peer in PEERS if options.peers is None or peer.name in options.peers]
    train = (options.data / "sentences" / "train.txt").read_text("utf-8").splitlines()[:CALIBRATED]
    squares = importances(network, lambda: vectors(network, tokenizer, train)) if chosen else {}
    for peer in chosen:
        with stored(network, peer, squares) as size:
            rows.append(row(peer.name, size, network))
        say(rows[-1])
    result = {"machine": dataclasses.asdict(this_machine()), "model": options.folder.name, "rows": rows}
    if options.out:
        with atomic_file(options.out) as file:
            file.write(f"{json.dumps(result, indent=1)}\n".encode())


@torch.no_grad()
def vectors(network: nn.Module, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """The mean of the last hidden states of each text, [texts, width]."""
    found = []
    for start in range(0, len(texts), AT_ONCE):
        some = list(texts[start : start + AT_ONCE])
        batch = tokenizer(some, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found.append(pooled(network(**given).last_hidden_state, batch["attention_mask"]))
    return torch.cat(found)


def sts(network: nn.Module, tokenizer: Any, pairs: Sequence[dict[str, str]]) -> float:
    """Spearman's correlation of cosines and scores, times 100."""
    a, b = (vectors(network, tokenizer, [pair[key] for pair in pairs]) for key in ("sentence1", "sentence2"))
    return 100 * spearman(F.cosine_similarity(a, b), torch.tensor([float(pair["score"]) for pair in pairs]))


if __name__ == "__main__":
    main()
