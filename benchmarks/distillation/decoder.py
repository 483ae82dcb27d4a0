"""A small language model made ternary by distillation: perplexity as tokens go by, and the memory of it.

    python benchmarks/distillation/decoder.py FOLDER [--steps 96] [--run NAME ...] [--out RESULT.json]

FOLDER is a causal language model of Hugging Face layout. It learns from the validation and test parts of
WikiText-2 (blocks of 256 tokens, four a step), all linear layers but the head ternary. Activations are
floats: int8 codes of a token in which one number is a thousand times the others say nothing of those.
Each evaluation is on the last tenth of them, which it does not learn from; before the first step and after
the last it is measured on a novel of Jane Austen's too. The runs:

- calibrated: from the codes that `hybridkit quantize --calibrate` finds on 32 blocks of 512 tokens of it,
  in groups of 64
- rounded: from the network's weights, rounded, a scale per channel
- progressive: a short one of the same with `--progressive`, for its memory

Each is `hybridkit train` in a process of its own, whose largest resident memory is reported. `--run` takes
some of them; the file keeps the others that it holds.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.distillation.sentences import articles
from benchmarks.heldout.austen import read_novels
from hybridkit.bench.machine import this_machine
from hybridkit.packing.atomic import atomic_file
from hybridkit.packing.model import PackedModel
from hybridkit.runtime.modules import load_packed
from hybridkit.tasks.resolve import make_task
from hybridkit.training.evaluation import evaluate

BATCH, LENGTH = 4, 256  # blocks of a step, tokens of a block
EVALUATED: Final = 32  # blocks
GROUPS: Final = "group:64"
CALIBRATION: Final = (
    *("--granularity", GROUPS, "--activations", "float", "--set", "task.sequence_length=512"),
    *("--samples", "32", "--tune-steps", "0", "--float-dtype", "fp16"),
)
RATES: Final = {"calibrated": 3e-5, "rounded": 3e-4, "progressive": 3e-4}  # by run
HOW: Final = (
    *("--task", "causal-lm", "--teacher-dtype", "bf16", "--distil", "logits,hidden"),
    *("--qat", "--ternary", "--learnable-scale", "--activations", "float"),
    *("--lr-controller", "cosine", "--precision", "bf16", "--clip-norm", "1"),
    *("--batch-size", str(BATCH), "--set", f"task.sequence_length={LENGTH}"),
    *("--set", f"task.eval_samples={EVALUATED}"),
)


def main() -> None:
    """Train, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("--steps", type=int, default=96)
    add("--progressive-steps", type=int, default=60)
    add("--run", nargs="+", choices=RATES, default=list(RATES))
    add("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_text(folder / "text")
        before = options.out and options.out.is_file()
        result: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if before else {}
        result |= {
            "machine": dataclasses.asdict(this_machine()),
            "model": options.folder.name,
            "rates": RATES,
            "tokens_of_a_step": BATCH * LENGTH,
        }
        result["original"] = evaluated(options.folder, folder / "text")
        for name in options.run:
            result[name] = run(options, folder, name)
            if options.out:  # also of the first, if the second fails
                with atomic_file(options.out) as file:
                    file.write(f"{json.dumps(result, indent=1)}\n".encode())
    print(json.dumps(result, indent=1))


def run(options: argparse.Namespace, folder: Path, name: str) -> dict[str, Any]:
    """One training: tokens, loss, perplexity and KL at each evaluation, and what it took."""
    runs, text, start = folder / name, str(folder / "text"), folder / "start.hk.safetensors"
    steps = options.progressive_steps if name == "progressive" else options.steps
    command = ["train", *HOW, "--model", str(options.folder), "--data-dir", text, "--run-dir", str(runs)]
    command += ["--lr", str(RATES[name]), "--max-steps", str(steps), "--eval-every", str(max(steps // 12, 1))]
    found: dict[str, Any] = {"commit": this_machine().git_commit}
    if name == "calibrated":
        quantize = ["quantize", str(options.folder), "--calibrate", text, *CALIBRATION, "-o", str(start)]
        found["calibration"] = spent(quantize)
        found["start"] = evaluated(options.folder, folder / "text", start)
        command += ["--init-from", str(start), "--teacher", str(options.folder), "--granularity", GROUPS]
    else:
        command += ["--teacher", "self", *(["--progressive"] if name == "progressive" else [])]
    found |= {"steps": steps, **spent(command)}
    (log,) = runs.glob("*/metrics.jsonl")
    records = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    found["curve"] = [point(record) for record in records if record["event"] == "evaluation"]
    return found | {"novel": records[-1]["test_perplexity"]}


def evaluated(folder: Path, text: Path, packed: Path | None = None) -> dict[str, float]:
    """Loss on the text of evaluations, and perplexity on a novel, of the network or of one packed from it."""
    given = {
        "model": str(folder),
        "data_dir": str(text),
        "sequence_length": LENGTH,
        "eval_samples": EVALUATED,
    }
    task: Any = make_task("causal-lm", given)
    network = task.from_pretrained(str(folder)).eval()
    if packed:
        network = load_packed(network, PackedModel.load(packed)).eval()
    splits = task.splits()
    loss = evaluate(network, task, splits.validation, batch_size=BATCH)["loss"]
    return {"loss": loss, "novel": evaluate(network, task, splits.test, batch_size=BATCH)["perplexity"]}


def spent(arguments: Sequence[str]) -> dict[str, Any]:
    """What a run of hybridkit takes: seconds, of processors too, and the largest resident memory."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "hybridkit", *arguments])
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"hybridkit {arguments[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return {
        "peak_bytes": usage.ru_maxrss * 1024,  # of Linux
        "seconds": time.perf_counter() - began,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
    }


def point(record: dict[str, Any]) -> dict[str, float]:
    """What one evaluation found."""
    names = ("loss", "perplexity", "teacher_kl", "teacher_top1")
    found = {name: record[f"validation_{name}"] for name in names}
    return {"tokens": record["step"] * BATCH * LENGTH, **found}


def write_text(folder: Path) -> None:
    """Nine tenths of the articles as train.txt, the rest as validation.txt, a novel as test.txt."""
    paragraphs = list(articles())
    cut = len(paragraphs) * 9 // 10
    novel = next(iter(read_novels().values()))
    parts = {
        "train": "\n\n".join(paragraphs[:cut]),
        "validation": "\n\n".join(paragraphs[cut:]),
        "test": novel,
    }
    for name, content in parts.items():
        folder.mkdir(exist_ok=True)
        with atomic_file(folder / f"{name}.txt") as file:
            file.write(content.encode())


if __name__ == "__main__":
    main()
