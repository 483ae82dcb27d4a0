"""A step of quantisation-aware training beside the plain fine-tuning step of the same network.

    python benchmarks/distillation/step.py ENCODER DECODER [--rounds 12] [--out RESULT.json]

Folders of Hugging Face layout. The encoder learns categories of WordNet's nouns (32 texts a step), the
decoder the next token of WikiText-2 (4 blocks of 128). Ours is `hybridkit train --qat --ternary` (int8
activations), all of its step, batches included; theirs the network of transformers on the same batches, which
are made already: forward, loss, backward, torch's fused AdamW. Same autocast, no teacher. Both take turns in
one process; ratios are per round, their median with a bootstrap 95 % interval.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.distillation.decoder import write_text
from benchmarks.distillation.start import write_categories
from hybridkit.bench.machine import this_machine
from hybridkit.bench.statistics import bootstrap_median
from hybridkit.packing.atomic import atomic_file
from hybridkit.tasks.protocol import forward
from hybridkit.training.config import TrainConfig, resolve
from hybridkit.training.trainer import Trainer

STEPS: Final = 2  # of a turn
WARM_UP: Final = 2  # rounds
PRECISIONS: Final = ("fp32", "bf16")


def main() -> None:
    """Time both networks in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("encoder", type=Path)
    add("decoder", type=Path)
    add("--rounds", type=int, default=12)
    add("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_categories(folder / "data.csv")
        write_text(folder / "text")
        tasks: dict[str, dict[str, Any]] = {
            "encoder": {
                "task": "text-classification",
                "model": str(options.encoder),
                "data_dir": str(folder / "data.csv"),
                "batch_size": 32,
                "options": {"task": {"max_length": 32}},
            },
            "decoder": {
                "task": "causal-lm",
                "model": str(options.decoder),
                "data_dir": str(folder / "text"),
                "batch_size": 4,
                "options": {"task": {"sequence_length": 128}},
            },
        }
        rows = [
            {"network": name, "precision": precision, **compared(task, precision, options.rounds)}
            for name, task in tasks.items()
            for precision in PRECISIONS
        ]
    text = json.dumps({"machine": dataclasses.asdict(this_machine()), "rows": rows}, indent=1)
    if options.out:
        with atomic_file(options.out) as file:
            file.write(f"{text}\n".encode())
    print(text)


def compared(task: dict[str, Any], precision: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step each way, and the ratio."""
    steps = STEPS * (rounds + WARM_UP)
    how: dict[str, Any] = {**task, "lr": 1e-4, "precision": precision, "max_steps": steps, "seed": 0}
    trainer = Trainer.seeded(resolve(**how, qat=True, ternary=True))
    ways: dict[str, Callable[[], Any]] = {"ours": trainer.step, "plain": plain(resolve(**how))}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + WARM_UP):
        for way in sorted(ways, reverse=bool(number % 2)):
            started = time.perf_counter()
            for _ in range(STEPS):
                ways[way]()
            if number >= WARM_UP:
                seconds[way].append((time.perf_counter() - started) / STEPS)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    milliseconds = {f"{way}_ms": 1e3 * bootstrap_median(each).median for way, each in seconds.items()}
    return {**milliseconds, "ratio": dataclasses.asdict(bootstrap_median(ratios))}


def plain(config: TrainConfig) -> Callable[[], None]:
    """One step of fine-tuning the network as transformers has it, on the batches that a run would get."""
    trainer = Trainer.seeded(config)
    task, network = trainer.task, trainer.model.train()
    batches = iter([next(trainer.feed).batch for _ in range(config.max_steps or 0)])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            loss = task.loss(forward(task, network, batch), batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
