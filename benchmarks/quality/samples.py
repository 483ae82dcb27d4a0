"""What more calibration data is worth: one network in ternary weights, calibrated on more and more samples.

    python benchmarks/quality/samples.py FOLDER CALIBRATION --texts TEXTS --samples 8 32 128 [--out OUT.json]
    python benchmarks/quality/samples.py FOLDER CALIBRATION --data DATA --samples 32 512 [--out OUT.json]

FOLDER is a language model, measured on TEXTS as decoder.py does it, or a sentence encoder, measured on DATA
as encoder.py does; CALIBRATION what it is calibrated on. Behind `--` come more options of `hybridkit
quantize`. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch.nn.functional as F
from torch import nn

from benchmarks.quality import decoder, encoder
from hybridkit.bench.machine import this_machine
from hybridkit.packing.atomic import atomic_file
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained import open_pretrained
from hybridkit.runtime.modules import load_packed

RECIPE = ("--embeddings", "8", "--float-dtype", "fp16", "--granularity", "group:64")
BLOCKS = 16  # of each text

Measure = Callable[[nn.Module], dict[str, float]]


def main() -> None:
    """Quantise and measure, size after size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("calibration")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--texts", type=Path)
    where.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", required=True)
    parser.add_argument("--out", type=Path)
    given = sys.argv[1:]
    own, more = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    options = parser.parse_args(own)
    if options.texts:
        network, measure = language_model(options.folder, options.texts)
    else:
        network, measure = sentence_encoder(options.folder, options.data)
    found = {"machine": dataclasses.asdict(this_machine()), "options": more, "original": measure(network)}
    rows: list[dict[str, float]] = []
    for samples in options.samples:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.hk.safetensors"
            command = ["hybridkit", "quantize", options.folder, "--calibrate", options.calibration]
            before = os.times()
            subprocess.run(
                [sys.executable, "-m", *command, "--samples", str(samples), *RECIPE, *more, "-o", str(file)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            spent = os.times()
            seconds = spent.children_user + spent.children_system
            seconds -= before.children_user + before.children_system
            packed = load_packed(network, PackedModel.load(file))
        rows.append({"samples": samples, "seconds": seconds, **measure(packed)})
        print(json.dumps(rows[-1]), flush=True)
        if options.out:
            with atomic_file(options.out) as out:
                out.write(f"{json.dumps(found | {'rows': rows}, indent=1)}\n".encode())


def language_model(folder: str, texts: Path) -> tuple[nn.Module, Measure]:
    """The network, and perplexities and differences to it."""
    opened = open_pretrained(folder)
    network = opened.network(head="causal-lm").eval().requires_grad_(False)
    tokenizer = opened.tokenizer()
    read = {n: decoder.blocks(tokenizer, texts / n, BLOCKS) for n in (decoder.NOVELS, decoder.ADDRESSES)}
    parts = read[decoder.NOVELS].split(decoder.AT_ONCE)
    original = [decoder.log_probabilities(network, batch).half() for batch in parts]
    return network, lambda ours: decoder.measured(ours, read, original)


def sentence_encoder(folder: str, data: Path) -> tuple[nn.Module, Measure]:
    """The network, and the mean cosine of sentences of novels to it."""
    opened = open_pretrained(folder)
    network, tokenizer = opened.network().eval().requires_grad_(False), opened.tokenizer()
    lines = (data / "sentences" / "test.txt").read_text("utf-8").splitlines()
    original = encoder.vectors(network, tokenizer, lines)

    def measure(ours: nn.Module) -> dict[str, float]:
        cosine = F.cosine_similarity(encoder.vectors(ours, tokenizer, lines), original).mean()
        return {"cosine": float(cosine)}

    return network, measure


if __name__ == "__main__":
    main()
