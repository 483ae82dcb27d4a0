"""A small language model made ternary by distillation: perplexity as tokens go by, and the memory of it.

    python benchmarks/distillation/decoder.py FOLDER [--steps 240] [--out RESULT.json]

FOLDER is a causal language model of Hugging Face layout. It learns from the validation and test parts of
WikiText-2 (blocks of 256 tokens, four a step) and is measured on Jane Austen's novels at each evaluation, all
linear layers but the head ternary with int8 activations. A second, short run with `--progressive` is there
for its memory. Both are `hybridkit train` in a process of its own, whose largest resident memory is reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.distillation.sentences import articles
from benchmarks.heldout.austen import read_novels
from hybridkit.bench.machine import this_machine
from hybridkit.packing.atomic import atomic_file

BATCH, LENGTH = 4, 256  # blocks of a step, tokens of a block
EVALUATED: Final = 32  # blocks
HOW: Final = (
    *("--task", "causal-lm", "--teacher", "self", "--teacher-dtype", "bf16", "--distil", "logits,hidden"),
    *("--qat", "--ternary", "--learnable-scale", "--lr-controller", "cosine", "--precision", "bf16"),
    *("--batch-size", str(BATCH), "--set", f"task.sequence_length={LENGTH}"),
    *("--set", f"task.eval_samples={EVALUATED}"),
)


def main() -> None:
    """Train twice, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("--steps", type=int, default=240)
    add("--progressive-steps", type=int, default=64)
    add("--lr", type=float, default=3e-4)
    add("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_text(folder / "text")
        lengths = {"progressive": options.progressive_steps, "end to end": options.steps}
        result: dict[str, Any] = {
            "machine": dataclasses.asdict(this_machine()),
            "model": options.folder.name,
            "lr": options.lr,
            "tokens_of_a_step": BATCH * LENGTH,
        }
        for name, steps in lengths.items():
            result[name] = run(options, folder, name, steps)
            if options.out:  # also of the first, if the second fails
                with atomic_file(options.out) as file:
                    file.write(f"{json.dumps(result, indent=1)}\n".encode())
    print(json.dumps(result, indent=1))


def run(options: argparse.Namespace, folder: Path, name: str, steps: int) -> dict[str, Any]:
    """One training: tokens, loss, perplexity and KL at each evaluation, seconds and bytes of memory."""
    runs = folder / name
    command = [sys.executable, "-m", "hybridkit", "train", *HOW, "--model", str(options.folder)]
    command += ["--data-dir", str(folder / "text"), "--lr", str(options.lr), "--run-dir", str(runs)]
    command += ["--max-steps", str(steps), "--eval-every", str(max(steps // 12, 1))]
    began = time.perf_counter()
    child = subprocess.Popen([*command, *(["--progressive"] if name == "progressive" else [])])
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"training ended with {os.waitstatus_to_exitcode(status)}")
    (log,) = runs.glob("*/metrics.jsonl")
    records = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return {
        "steps": steps,
        "peak_bytes": usage.ru_maxrss * 1024,  # of Linux
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "curve": [point(record) for record in records if record["event"] == "evaluation"],
    }


def point(record: dict[str, Any]) -> dict[str, float]:
    """What one evaluation found."""
    names = ("loss", "perplexity", "teacher_kl", "teacher_top1")
    found = {name: record[f"validation_{name}"] for name in names}
    return {"tokens": record["step"] * BATCH * LENGTH, **found}


def write_text(folder: Path) -> None:
    """train.txt, and the novels as validation.txt and test.txt."""
    novels = list(read_novels().values())
    parts = {"train": "\n\n".join(articles()), "validation": novels[0], "test": novels[1]}
    for name, content in parts.items():
        folder.mkdir(exist_ok=True)
        with atomic_file(folder / f"{name}.txt") as file:
            file.write(content.encode())


if __name__ == "__main__":
    main()
