"""What a pretrained start is worth to a ternary classifier: fine-tuned from it and from random weights.

    python benchmarks/distillation/start.py FOLDER [--steps 120] [--seeds 5] [--out RESULT.json]

FOLDER is an encoder of Hugging Face layout. The task is to tell from a definition of WordNet which of its 26
categories of nouns the word belongs to (animal, artifact, feeling, ...). Both starts get the same steps and
data, ternary layers and int8 activations, and each its own learning rate, the best of a grid on a seed that
does not count. Prints the test accuracy by seed, and the paired difference with a bootstrap interval.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.distillation.sentences import WORDNET
from benchmarks.heldout.data import read_matching
from hybridkit.bench.machine import this_machine
from hybridkit.bench.statistics import bootstrap_median
from hybridkit.packing.atomic import atomic_file
from hybridkit.pretrained import open_pretrained
from hybridkit.training.config import resolve
from hybridkit.training.loop import train

GRID: Final = (1e-4, 3e-4, 1e-3)
TUNING_SEED: Final = 100
EVALUATED: Final = 2_048  # samples of validation and test
LONGEST: Final = 48  # tokens
STARTS: Final = ("pretrained", "random")


def main() -> None:
    """Tune, train and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("--steps", type=int, default=120)
    add("--seeds", type=int, default=5)
    add("--out", type=Path)
    options = parser.parse_args()
    rates, found = {}, {}
    for start in STARTS:
        tuned = {lr: accuracy(options, start, lr, TUNING_SEED)["validation"] for lr in GRID}
        rates[start] = max(tuned, key=tuned.__getitem__)
        print(start, tuned, flush=True)
        found[start] = [accuracy(options, start, rates[start], s)["test"] for s in range(options.seeds)]
        print(start, found[start], flush=True)
    pairs = zip(found["pretrained"], found["random"], strict=True)
    result = {
        "machine": dataclasses.asdict(this_machine()),
        "steps": options.steps,
        "rates": rates,
        "accuracy": found,
        "gained": dataclasses.asdict(bootstrap_median([a - b for a, b in pairs])),
    }
    text = json.dumps(result, indent=1)
    if options.out:
        with atomic_file(options.out) as file:
            file.write(f"{text}\n".encode())
    print(text)


def accuracy(options: argparse.Namespace, start: str, lr: float, seed: int) -> dict[str, float]:
    """Of one run, on validation and test data."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_categories(folder / "data.csv")
        model = options.folder if start == "pretrained" else random_weights(options.folder, folder, seed)
        config = resolve(
            task="text-classification",
            model=str(model),
            data_dir=str(folder / "data.csv"),
            qat=True,
            ternary=True,
            lr=lr,
            lr_controller="cosine",
            precision="bf16",
            max_steps=options.steps,
            seed=seed,
            options={"task": {"eval_samples": EVALUATED, "max_length": LONGEST}},
        )
        result = train(config, run_dir=folder / "runs")
    return {"validation": result.validation["accuracy"], "test": result.test["accuracy"]}


def random_weights(original: Path, folder: Path, seed: int) -> Path:
    """A folder like `original` whose weights are freshly drawn."""
    from transformers import AutoModel

    found = open_pretrained(str(original))
    torch.manual_seed(seed)
    AutoModel.from_config(found.config).save_pretrained(folder / "random")
    found.tokenizer().save_pretrained(folder / "random")
    return folder / "random"


def write_categories(path: Path) -> None:
    """Definitions of nouns with the number of their lexicographer file, in the order of WordNet."""
    (content,) = read_matching(WORDNET, r"usr/share/wordnet/data\.noun")[0]
    with path.open("w", encoding="utf-8", newline="") as file:
        rows: Any = csv.writer(file)
        rows.writerow(("text", "label"))
        for line in content.decode().splitlines():
            if not line.startswith("  "):  # the licence
                rows.writerow((line.split(" | ", 1)[1].split(";")[0].strip(), line.split(" ", 2)[1]))


if __name__ == "__main__":
    main()
