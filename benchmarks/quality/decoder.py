"""A language model quantised without training: quality by bytes of the file, beside other tools.

    python benchmarks/quality/decoder.py FOLDER --texts TEXTS [--ours NAME=FILE ...] [--out RESULT.json]

FOLDER is a causal language model of Hugging Face layout whose head shares the embedding, TEXTS what texts.py
wrote. Each row is a network whose weights are what a tool stores: perplexity on two texts (64 blocks of 512
tokens of each, evenly over it), on the first also KL to the original and how often the likeliest token is
the same. Bytes are those of all weights, norms in fp32 as llama.cpp has them; of ours, of the whole file.
`--ours` names files that `hybridkit quantize` made (docs/results.md has the commands).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.quality.rows import parser_of, write_rows
from benchmarks.quality.texts import ADDRESSES, CALIBRATION, NOVELS
from hybridkit.pretrained import open_pretrained

LENGTH, BLOCKS = 512, 64
CALIBRATED: Final = 128  # blocks, for importances
AT_ONCE: Final = 4


def main() -> None:
    """Measure every row."""
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    options = parser.parse_args()
    opened = open_pretrained(str(options.folder))
    network = opened.network(head="causal-lm").eval().requires_grad_(False)
    tokenizer = opened.tokenizer()
    texts = {name: blocks(tokenizer, options.texts / name, options.blocks) for name in (NOVELS, ADDRESSES)}
    original = [log_probabilities(network, batch).half() for batch in texts[NOVELS].split(AT_ONCE)]

    def calibrate() -> None:
        for batch in blocks(tokenizer, options.texts / CALIBRATION, CALIBRATED).split(AT_ONCE):
            network(input_ids=batch, use_cache=False)

    tokens = options.blocks * LENGTH
    write_rows(network, lambda ours: measured(ours, texts, original), calibrate, options, tokens=tokens)


def blocks(tokenizer: Any, file: Path, count: int) -> Tensor:
    """int64 [count, LENGTH], evenly over a text."""
    ids = torch.tensor(tokenizer(file.read_text("utf-8"), verbose=False)["input_ids"])
    whole = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    return whole[np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(int)]


@torch.no_grad()
def log_probabilities(network: nn.Module, ids: Tensor) -> Tensor:
    """Of every token, float32 [blocks, LENGTH - 1, vocabulary]."""
    logits = network(input_ids=ids, use_cache=False).logits[:, :-1]
    found: Tensor = F.log_softmax(logits.float(), dim=-1)
    return found


def measured(network: nn.Module, texts: dict[str, Tensor], original: list[Tensor]) -> dict[str, float]:
    """Perplexity by text; KL in nats and the share of equal likeliest tokens on the first."""
    found: dict[str, float] = {}
    for name, ids in texts.items():
        loss, kl, same = [], [], []
        for place, batch in enumerate(ids.split(AT_ONCE)):
            ours = log_probabilities(network, batch)
            loss.append(F.nll_loss(ours.flatten(0, 1), batch[:, 1:].flatten()))
            if name == NOVELS:
                theirs = original[place].float()
                kl.append(F.kl_div(ours, theirs, log_target=True, reduction="sum") / theirs[..., 0].numel())
                same.append((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
        found[f"perplexity {Path(name).stem}"] = math.exp(min(float(torch.stack(loss).mean()), 700))
        if kl:
            found |= {"kl": float(torch.stack(kl).mean()), "same": float(torch.stack(same).mean())}
    return found


if __name__ == "__main__":
    main()
