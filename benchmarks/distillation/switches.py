"""What each switch of quantisation-aware distillation is worth: one model, one text, one budget, each alone.

    python benchmarks/distillation/switches.py MODEL --text FILE... --held-out FILE... [--out RESULT.json]

MODEL is a folder of Hugging Face layout, an encoder or a causal language model. The student is a copy of the
teacher with ternary layers and int8 activations. It learns the hidden states of every layer (mean squared
error over the teacher's mean square, padding left out) and the output: for an encoder 1 - cosine of the mean
of the last states, for a language model the KL divergence of the next token. AdamW, a warm-up of a tenth of
the steps, then a straight line down to zero. Measured on the held-out text, in evaluation mode with hard
codes: mean cosine of sentence vectors, or KL and agreement of the likeliest token.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridkit.bench.machine import this_machine
from hybridkit.optim.base import build_base_optimizer
from hybridkit.optim.groups import Apart
from hybridkit.packing.atomic import atomic_file
from hybridkit.pretrained import open_pretrained
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.frozen import freeze_codes_, parse_trainable
from hybridkit.quant.layers import latent_weights, scale_parameters, set_ramp
from hybridkit.quant.prepare import prepare_qat_

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Switch:
    """How a student differs from the plain one."""

    quantization: dict[str, Any] = field(default_factory=dict)
    ramp: float = 0.0
    decay: float = 0.0
    latent_decay: bool = True
    scale_lr: float = 1.0
    trainable: str = ""


SWITCHES = {
    "base": Switch(),
    "ramp": Switch(ramp=0.5),
    "softmax": Switch({"weights": "ternary-softmax"}, ramp=0.8),
    "deadzone": Switch({"weights": "ternary-deadzone"}, ramp=0.8),
    "norms": Switch({"insert_norms": True}),
    "group64": Switch({"granularity": "group:64"}),
    "group128": Switch({"granularity": "group:128"}),
    "mse": Switch({"weights": "ternary-mse"}),
    "learned": Switch({"weights": "ternary-learned"}),
    "learned-slow": Switch({"weights": "ternary-learned"}, scale_lr=0.1),
    "decay": Switch(decay=0.1),
    "no-latent-decay": Switch(decay=0.1, latent_decay=False),
    "adapters": Switch({"weights": "ternary-mse"}, trainable="scales,norms,biases,adapters:16"),
}


def batches(files: list[str], tokenizer: Any, size: int, length: int, lm: bool, seed: int) -> Iterator[Batch]:
    """Batches without end: blocks of `length` tokens, or paragraphs cut to it; in an order set by `seed`."""
    text = "\n\n".join(Path(file).read_text("utf-8", "replace") for file in files)
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n") if len(p.split()) > 5]
    if lm:
        ids = torch.tensor(tokenizer("\n".join(paragraphs))["input_ids"])
        blocks = ids[: len(ids) // length * length].view(-1, length)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(blocks) if lm else len(paragraphs), generator=generator)
        if len(order) < size:
            raise SystemExit(
                f"{', '.join(files)}: {len(order)} pieces of text are less than a batch of {size}"
            )
        for chosen in order[: len(order) // size * size].view(-1, size):
            if lm:
                yield {"input_ids": blocks[chosen], "attention_mask": torch.ones_like(blocks[chosen])}
            else:
                some = [paragraphs[i] for i in chosen.tolist()]
                made = tokenizer(some, padding=True, truncation=True, max_length=length, return_tensors="pt")
                yield {name: made[name] for name in ("input_ids", "attention_mask")}


def run(model: nn.Module, batch: Batch, lm: bool) -> tuple[tuple[Tensor, ...], Tensor]:
    """Hidden states [B, T, H] of all layers, and the output: logits [B, T, V] or sentence vectors [B, H]."""
    options = {"use_cache": False} if lm else {}
    found = model(**batch, output_hidden_states=True, **options)
    mask = batch["attention_mask"].unsqueeze(-1).float()
    pooled = (found.hidden_states[-1] * mask).sum(1) / mask.sum(1)
    return found.hidden_states, found.logits if lm else F.normalize(pooled, dim=-1)


def loss(student: Any, teacher: Any, batch: Batch, lm: bool) -> Tensor:
    """What is minimised, 0-d; see the module."""
    mask = batch["attention_mask"].unsqueeze(-1).float()
    pairs = zip(student[0], teacher[0], strict=True)
    hidden = [((s - t) * mask).square().sum() / (t * mask).square().sum() for s, t in pairs]
    output = kl(student[1], teacher[1]) if lm else 1 - (student[1] * teacher[1]).sum(-1).mean()
    return torch.stack(hidden).mean() + output


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) in nats, the mean over tokens."""
    ours, theirs = (F.log_softmax(logits.flatten(0, -2), dim=-1) for logits in (student, teacher))
    return F.kl_div(ours, theirs, log_target=True, reduction="batchmean")


@torch.no_grad()
def measure(student: nn.Module, teacher: nn.Module, held: list[Batch], lm: bool) -> dict[str, float]:
    """The student beside the teacher on held-out batches."""
    student.eval()
    found: dict[str, list[float]] = {}
    for batch in held:
        ours, theirs = run(student, batch, lm)[1], run(teacher, batch, lm)[1]
        if lm:
            agree = (ours.argmax(-1) == theirs.argmax(-1)).float().mean()
            values = {"kl": float(kl(ours, theirs)), "agreement": float(agree)}
        else:
            values = {"cosine": float((ours * theirs).sum(-1).mean())}
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def train(teacher: nn.Module, switch: Switch, feed: Iterator[Batch], args: Any, lm: bool) -> nn.Module:
    """A student of `teacher` after `args.steps` steps."""
    student = copy.deepcopy(teacher).requires_grad_(True)
    prepare_qat_(student, QuantConfig(**switch.quantization), example_inputs=next(feed))
    if switch.trainable:
        freeze_codes_(student, parse_trainable(switch.trainable))
    apart = [Apart(scale_parameters(student), lr_factor=switch.scale_lr)]
    apart += [] if switch.latent_decay else [Apart(latent_weights(student), decayed=False)]
    optimizer = build_base_optimizer("adamw", student, lr=args.lr, weight_decay=switch.decay, apart=apart)
    warm = max(1, args.steps // 10)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (args.steps - step) / max(1, args.steps - warm))
    )
    for step in range(args.steps):
        batch = next(feed)
        student.train()
        set_ramp(student, min((step + 1) / (switch.ramp * args.steps), 1.0) if switch.ramp else 1.0)
        with torch.no_grad():
            target = run(teacher, batch, lm)
        optimizer.zero_grad()
        loss(run(student, batch, lm), target, batch, lm).backward()
        optimizer.step()
        rate.step()
    set_ramp(student, 1.0)
    return student


def main() -> None:
    """Every chosen switch with every seed; a line of JSON each, and all of them in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--held-out", nargs="+", required=True)
    parser.add_argument("--switch", nargs="+", choices=SWITCHES, default=list(SWITCHES))
    for name, default in (("steps", 200), ("batch", 16), ("length", 32), ("seeds", 1), ("held-batches", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    opened = open_pretrained(args.model)
    lm = "CausalLM" in str(opened.config.architectures)
    teacher = opened.network(head="causal-lm" if lm else None).eval().requires_grad_(False)
    tokenizer = opened.tokenizer()
    size, length = args.batch, args.length
    held_out = batches(args.held_out, tokenizer, size, length, lm, seed=0)
    held = [next(held_out) for _ in range(args.held_batches)]
    budget = {name: getattr(args, name) for name in ("steps", "batch", "length", "lr")}
    machine = dataclasses.asdict(this_machine())
    found = {"machine": machine, "model": Path(args.model).name, **budget}
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for name in args.switch:
            torch.manual_seed(seed)
            started = time.perf_counter()
            feed = batches(args.text, tokenizer, size, length, lm, seed)
            student = train(teacher, SWITCHES[name], feed, args, lm)
            row = {"switch": name, "seed": seed, "seconds": round(time.perf_counter() - started, 1)}
            row |= {key: round(value, 4) for key, value in measure(student, teacher, held, lm).items()}
            print(json.dumps(row), flush=True)
            rows.append(row)
            if args.out:
                with atomic_file(args.out) as file:
                    file.write(f"{json.dumps(found | {'rows': rows}, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
