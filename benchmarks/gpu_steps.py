"""Training steps on a GPU: what ours take, and what they take on top of their base optimizer.

    python benchmarks/gpu_steps.py [--device cuda] [--rounds 20] [--out FILE.json]

Trainers of the byte-level transformers take turns of ten steps in one process, the order turning from round
to round; the device is waited for at the end of a turn. A step holds everything: batch, forward, backward,
optimizer. Ratios are per round, their median with a bootstrap 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from hybridkit.bench.convergence.settings import QUANTISED, Precision
from hybridkit.bench.overhead import FLAGS, STEPS
from hybridkit.bench.statistics import bootstrap_median
from hybridkit.training.config import resolve
from hybridkit.training.trainer import Trainer

WAYS = {**FLAGS, "muon": {"optimizer": "muon"}}
MODELS = (("transformer-0.4m", 16), ("transformer-3m", 16), ("transformer-3m", 256))


def turn(trainer: Trainer) -> float:
    """Seconds of STEPS steps."""
    started = time.perf_counter()
    for _ in range(STEPS):
        trainer.step()
    if trainer.config.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(model: str, batch_size: int, precision: Precision, device: str, rounds: int) -> dict[str, object]:
    """One row: milliseconds of a step each way, and the ratios of ours."""
    trainers = {
        way: Trainer.seeded(
            resolve(  # type: ignore[arg-type]
                task="text",
                model=model,
                batch_size=batch_size,
                max_steps=STEPS * (rounds + 2),
                seed=0,
                device=device,
                **QUANTISED[precision],
                **flags,
            )
        )
        for way, flags in WAYS.items()
    }
    names = list(WAYS)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 2):
        first = number % len(names)
        for way in names[first:] + names[:first]:
            took = turn(trainers[way])
            if number >= 2:
                seconds[way].append(took)
    row: dict[str, object] = {"model": model, "batch_size": batch_size, "precision": precision}
    row |= {f"{way}_ms": 1e3 * bootstrap_median(times).median / STEPS for way, times in seconds.items()}
    for name, over, under in (("overhead", "hybrid", "base"), ("over_muon", "hybrid", "muon")):
        pairs = zip(seconds[over], seconds[under], strict=True)
        ratio = bootstrap_median([a / b for a, b in pairs])
        row[name] = [ratio.low, ratio.median, ratio.high]
    return row


def main() -> None:
    """Print a line per model and precision, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    name = "cpu" if arguments.device == "cpu" else torch.cuda.get_device_name(arguments.device)
    rows = []
    for model, batch_size in MODELS:
        for precision in ("fp32", "ternary"):
            rows.append(measure(model, batch_size, precision, arguments.device, arguments.rounds))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        found = {"device": name, "torch": torch.__version__, "rounds": arguments.rounds, "rows": rows}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
