"""What a ternary sentence encoder is worth beside the network that it was made from.

    python benchmarks/distillation/measure.py FOLDER ENCODER.onnx --sentences FILE --pairs FILE.csv \
        --packed FILE.hk.safetensors --run RUN --processor-seconds S [--out RESULT.json]

FOLDER is the original (Hugging Face layout), ENCODER.onnx what `hybridkit export` made of the ternary one; it
runs with the native operators. Measured are the mean cosine of the embeddings of a sentence a line to the
original's, Spearman's correlation of both with the scores of pairs (sentence1, sentence2, score), bytes with
everything that lies beside a file, and the latency for 1 and 32 texts of 32 tokens beside the same graph in
fp32 and as ONNX Runtime quantises it, in turns. Intervals are of 2,000 bootstrap samples over sentences or
pairs.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from hybridkit.bench.latency import Effort, compare_latency
from hybridkit.bench.machine import this_machine
from hybridkit.bench.variants import INT8, TWIN, write_variants
from hybridkit.packing.atomic import atomic_file
from hybridkit.runtime.session import session
from hybridkit.tasks.language.embedding import TextEmbedding, spearman
from hybridkit.tasks.language.sentences import SentenceOptions

SAMPLES: Final = 2_000  # of a bootstrap
TOKENS: Final = 32  # of a text that is timed
BATCHES: Final = (1, 32)
PEERS: Final = (TWIN, INT8)
EFFORT: Final = Effort(rounds=9, seconds=1.0)

KEPT: Final = (
    *("task", "quantizer", "granularity", "activations", "lr", "lr_controller", "batch_size", "max_steps"),
    *("precision", "teacher_dtype", "seed"),
)

Vectors = NDArray[np.float32]
Feed = dict[str, NDArray[np.int64]]


def main() -> None:
    """Measure, and write or print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("original", type=Path)
    add("encoder", type=Path)
    add("--sentences", type=Path, required=True)
    add("--pairs", type=Path, required=True)
    add("--packed", type=Path, required=True)
    add("--run", type=Path, required=True)
    add("--processor-seconds", type=float, required=True, help="of the run: user + sys, as `time` says")
    add("--out", type=Path)
    options = parser.parse_args()
    task = TextEmbedding(SentenceOptions(model=str(options.original), data_dir=str(options.sentences)))
    network = task.from_pretrained(str(options.original)).eval()
    ours = session(options.encoder, threads=torch.get_num_threads(), native=True)
    names = {value.name for value in ours.get_inputs()}

    def tokens(texts: Sequence[str]) -> dict[str, torch.Tensor]:
        return task.inputs(task.collate([{"text": text} for text in texts]))  # type: ignore[return-value]

    def original(texts: Sequence[str]) -> Vectors:
        with torch.no_grad():
            return network(**tokens(texts))["embedding"].numpy()  # type: ignore[no-any-return]

    def ternary(texts: Sequence[str]) -> Vectors:
        feed = {name: x.numpy() for name, x in tokens(texts).items() if name in names}
        return ours.run(["embedding"], feed)[0]  # type: ignore[no-any-return]

    lines = options.sentences.read_text("utf-8").splitlines()
    result = {
        "machine": dataclasses.asdict(this_machine()),
        "sentences": len(lines),
        "cosine": agreement(vectors(original, lines), vectors(ternary, lines)),
        "spearman": similarity(options.pairs, original, ternary),
        "bytes": {path.suffix: with_assets(path) for path in (options.encoder, options.packed)},
        "original_bytes": (options.original / "model.safetensors").stat().st_size,
        "latency": latency(options.encoder, tokens(lines), names),
        "processor_seconds": options.processor_seconds,
        "training": training(options.run),
    }
    text = json.dumps(result, indent=1)
    if options.out:
        with atomic_file(options.out) as file:
            file.write(f"{text}\n".encode())
    print(text)


def vectors(encode: Callable[[Sequence[str]], Vectors], texts: Sequence[str]) -> Vectors:
    """The embedding of each text, [texts, width]."""
    return np.concatenate([encode(texts[i : i + 32]) for i in range(0, len(texts), 32)])


def agreement(theirs: Vectors, ours: Vectors) -> dict[str, Any]:
    """The mean cosine with its interval, and quantiles."""
    norms = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    cosines = (theirs * ours).sum(axis=1) / norms
    means = [cosines[places].mean() for places in resampled(len(cosines))]
    quantiles = {f"p{q}": float(np.percentile(cosines, q)) for q in (1, 10, 50)}
    return {"mean": float(cosines.mean()), "interval": interval(means), **quantiles}


def similarity(path: Path, *encoders: Callable[[Sequence[str]], Vectors]) -> dict[str, Any]:
    """Spearman's correlation of the cosines of pairs with their scores, times 100, and what is lost of it."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = torch.tensor([float(row["score"]) for row in rows])
    cosines = []
    for encode in encoders:
        sides = ([row[key] for row in rows] for key in ("sentence1", "sentence2"))
        a, b = (torch.from_numpy(vectors(encode, side)) for side in sides)
        cosines.append(torch.nn.functional.cosine_similarity(a, b))
    whole = [100 * spearman(each, scores) for each in cosines]
    lost = []
    for places in resampled(len(rows)):
        first, second = (100 * spearman(each[places], scores[places]) for each in cosines)
        lost.append(first - second)
    return {
        "pairs": len(rows),
        "original": whole[0],
        "ternary": whole[1],
        "lost": whole[0] - whole[1],
        "interval": interval(lost),
    }


def latency(path: Path, tokens: dict[str, torch.Tensor], names: set[str]) -> list[dict[str, Any]]:
    """Milliseconds of the file and of its peers, for each number of texts and threads."""
    words = tokens["input_ids"][tokens["attention_mask"] > 0].numpy()  # the sentences, one after the other
    found = []
    with tempfile.TemporaryDirectory() as folder:
        _, variants, notes = write_variants(path, Path(folder))
        chosen = [variants[0], *(variant for variant in variants if variant.name in PEERS)]
        if len(chosen) <= len(PEERS):
            raise SystemExit(f"a peer is missing: {'; '.join(notes)}")
        for threads in sorted({1, torch.get_num_threads()}):
            sessions = {variant.name: variant.session(threads) for variant in chosen}
            for batch in BATCHES:
                texts = np.resize(words, (8, batch, TOKENS))
                feeds: list[Feed] = [{k: v for k, v in inputs(ids).items() if k in names} for ids in texts]
                times = compare_latency(sessions, feeds, batch, EFFORT)
                mine = times[chosen[0].name].p50_ms
                for name, timing in times.items():
                    label = "ternary" if name == chosen[0].name else name
                    row = {"threads": threads, "batch": batch, "name": label, "p50_ms": timing.p50_ms}
                    found.append({**row, "p90_ms": timing.p90_ms, "times_ours": timing.p50_ms / mine})
    return found


def inputs(ids: NDArray[np.int64]) -> Feed:
    """Texts without padding."""
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def training(run: Path) -> dict[str, Any]:
    """What the run was, and the cosine on its validation data at each evaluation."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    curve = [(r["step"], r["validation_teacher_cosine"]) for r in records if r["event"] == "evaluation"]
    config = json.loads((run / "config.json").read_text("utf-8"))["config"]
    return {
        "config": {name: config[name] for name in KEPT},
        "steps": len(steps),
        "tokens": sum(step["tokens"] for step in steps),
        "seconds": sum(step["seconds"] for step in steps),
        "curve": curve,
    }


def with_assets(path: Path) -> dict[str, int]:
    """The bytes of a file, and with the folder of tokenizer and configuration that goes with it."""
    folder = path.with_name(path.name.split(".")[0] + ".assets")
    beside = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    return {"file": path.stat().st_size, "everything": path.stat().st_size + beside}


def resampled(size: int) -> list[NDArray[np.int64]]:
    """Places drawn with replacement."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, size, size) for _ in range(SAMPLES)]


def interval(values: Sequence[float]) -> list[float]:
    """The middle 95 %."""
    return [float(value) for value in np.percentile(values, (2.5, 97.5))]


if __name__ == "__main__":
    main()
