"""The tables of this folder's committed results."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import median
from typing import Any

from hybridkit.bench.format import interval
from hybridkit.bench.statistics import Interval
from hybridkit.bench.tables import TextTable

RESULTS = Path(__file__).resolve().parents[1] / "results"


def tables() -> dict[str, TextTable]:
    """All of them, by name."""
    return {
        "encoder": encoder(),
        "encoder-latency": encoder_latency(),
        "classifier-start": classifier_start(),
        "training-step": training_step(),
        "decoder": decoder(),
        "switches-encoder": switches("switches-minilm", "all-MiniLM-L6-v2", "cosine", "{:.4f}"),
        "switches-decoder": switches("switches-smollm2", "SmolLM2-135M", "kl", "{:.3f}"),
    }


def encoder() -> TextTable:
    """A sentence encoder made ternary: how close, how good, how large."""
    found = _read("minilm")
    cosine, ranks, run = found["cosine"], found["spearman"], found["training"]
    minutes = found["processor_seconds"] / 2 / 60
    whole = {suffix: sizes["everything"] / 1e6 for suffix, sizes in found["bytes"].items()}
    lost = interval(Interval(ranks["lost"], *ranks["interval"]), 2)
    mean = interval(Interval(cosine["mean"], *cosine["interval"]), 4)
    rows = [
        ("mean cosine to the original, sentences of novels", ">= 0.93", mean, _met(cosine["mean"] >= 0.93)),
        ("its 10th and 1st percentile", "reported", f"{cosine['p10']:.3f}, {cosine['p1']:.3f}", ""),
        ("Spearman on the STS benchmark, original", "reported", f"{ranks['original']:.2f}", ""),
        ("the same, ternary", "reported", f"{ranks['ternary']:.2f}", ""),
        ("points lost", "<= 2", lost, _met(ranks["lost"] <= 2)),
        ("packed file, tokenizer included, MB", "<= 15", *_megabytes(whole[".safetensors"])),
        ("ONNX file, tokenizer included, MB", "<= 15", *_megabytes(whole[".onnx"])),
        ("minutes of training, two cores' time / 2", "<= 60", f"{minutes:.1f}", _met(minutes <= 60)),
    ]
    notes = [
        f"{found['sentences']:,} sentences, {ranks['pairs']:,} pairs; 95 % bootstrap intervals over them, one"
        f" run. {run['steps']:,} steps, {run['tokens'] / 1e6:.1f} million tokens of other text, "
        f"{found['machine']['processor']}, {found['machine']['cores']} cores. The original is "
        f"{found['original_bytes'] / 1e6:.1f} MB. "
        "Cosine on other sentences of the novels by step: "
        + ", ".join(f"{step:,}: {value:.3f}" for step, value in run["curve"])
        + "."
    ]
    return TextTable("all-MiniLM-L6-v2, ternary", ("number", "must be", "measured", "verdict"), rows, notes)


def encoder_latency() -> TextTable:
    """What a run of its file takes, beside its peers."""
    found = _read("minilm")
    rows = [
        (
            f"{row['batch']} x 32 tokens, {row['threads']} thread{'s' if row['threads'] > 1 else ''}",
            row["name"],
            f"{row['p50_ms']:.2f}",
            f"{row['p90_ms']:.2f}",
            f"{row['times_ours']:.2f}",
        )
        for row in found["latency"]
    ]
    columns = ("texts", "file", "median, ms", "90th percentile, ms", "times ours")
    return TextTable("The encoder inside ONNX Runtime", columns, rows, ["Files take turns; inputs differ."])


def classifier_start() -> TextTable:
    """A ternary classifier from a pretrained start and from random weights."""
    found = _read("classifier-start")
    rows = [
        (
            start,
            f"{found['rates'][start]:g}",
            ", ".join(f"{100 * value:.1f}" for value in values),
            f"{100 * sorted(values)[len(values) // 2]:.1f}",
        )
        for start, values in found["accuracy"].items()
    ]
    gained = Interval(*(100 * found["gained"][name] for name in ("median", "low", "high")))
    notes = [
        f"{found['steps']} steps each. Gained by the pretrained start, paired by seed: {interval(gained, 1)} "
        "points (bootstrap interval of the median)."
    ]
    columns = ("start", "learning rate", "test accuracy by seed, %", "median")
    return TextTable("A ternary classifier of 26 categories", columns, rows, notes)


def training_step() -> TextTable:
    """A step of quantisation-aware training beside a plain one."""
    found = _read("training-step")
    rows = [
        (
            row["network"],
            row["precision"],
            f"{row['ours_ms']:.0f}",
            f"{row['plain_ms']:.0f}",
            interval(Interval(**row["ratio"]), 2),
            _met(row["ratio"]["median"] <= 1.3),
        )
        for row in found["rows"]
    ]
    notes = [f"{found['machine']['processor']}, {found['machine']['cores']} cores."]
    columns = ("network", "precision", "ternary, ms", "plain, ms", "ratio", "<= 1.3")
    return TextTable("A training step, ternary and plain", columns, rows, notes)


def decoder() -> TextTable:
    """A small language model made ternary: perplexity by tokens, from each start."""
    found = _read("decoder")
    starts = [name for name in ("calibrated", "rounded") if name in found]
    rows = []
    for points in zip(*(found[name]["curve"] for name in starts), strict=True):
        row = [f"{points[0]['tokens']:,}"]
        for point in points:
            row += [f"{point['loss']:.3f}", f"{point['perplexity']:,.0f}", f"{point['teacher_kl']:.3f}"]
        rows.append(tuple(row))
    original = found["original"]
    notes = [f"The original: loss {original['loss']:.3f}, perplexity of the novel {original['novel']:.1f}."]
    notes += [_training(name, found[name]) for name in starts]
    if stages := found.get("progressive"):
        where = f"measured on {stages['machine']['processor']}, with int8 activations"
        most = _gigabytes(stages)
        notes.append(f"`--progressive`, {stages['steps']} steps: {most} at most (must be <= 8; {where}).")
    notes.append(f"{found['machine']['processor']}, {found['machine']['cores']} cores.")
    columns = ("tokens", *(f"{start}: {what}" for start in starts for what in ("loss", "perplexity", "KL")))
    return TextTable("SmolLM2-135M, ternary, on held-out articles", columns, rows, [" ".join(notes)])


def _training(start: str, run: dict[str, Any]) -> str:
    rises = sum(b["loss"] >= a["loss"] for a, b in itertools.pairwise(run["curve"]))
    before = f" after {run['calibration']['seconds'] / 60:.0f} of calibration" if "calibration" in run else ""
    return (
        f"From {start} codes{_before(run)} the loss rises at {rises} of {len(run['curve'])} evaluations; the "
        f"novel's perplexity is {run['novel']:,.0f} at the end; {run['seconds'] / 60:.0f} minutes{before}, "
        f"{_gigabytes(run)} at most (must be <= 24)."
    )


def _before(run: dict[str, Any]) -> str:
    if "start" not in run:
        return ""
    return f" (loss {run['start']['loss']:.3f}, the novel {run['start']['novel']:,.0f} before the first step)"


def _gigabytes(run: dict[str, Any]) -> str:
    return f"{run['peak_bytes'] / 1e9:.1f} GB"


def switches(file: str, model: str, metric: str, how: str) -> TextTable:
    """What each switch of quantisation-aware distillation is worth, alone."""
    found = _read(file)
    seeds = sorted({row["seed"] for row in found["rows"]})
    by_switch: dict[str, dict[int, float]] = {}
    for row in found["rows"]:
        by_switch.setdefault(row["switch"], {})[row["seed"]] = row[metric]
    base = by_switch["base"]
    rows = []
    for name, values in by_switch.items():
        gained = sorted(values[seed] - base[seed] for seed in seeds)
        rows.append(
            (
                name,
                ", ".join(how.format(values[seed]) for seed in seeds),
                ""
                if name == "base"
                else " to ".join(dict.fromkeys(f"{g:+.3f}" for g in gained[:: len(gained) - 1 or 1])),
                f"{median(row['seconds'] for row in found['rows'] if row['switch'] == name):.0f}",
            )
        )
    notes = [
        f"{found['steps']} steps of {found['batch']} texts of {found['length']} tokens at most, rate "
        f"{found['lr']:g}; seeds {', '.join(map(str, seeds))}; held-out novels. The difference is to the "
        "plain one of the same seed, from the least to the largest."
    ]
    better = "mean cosine to the original" if metric == "cosine" else "KL to the original, nats"
    columns = ("switch", better, "difference", "seconds")
    return TextTable(f"{model}: one switch at a time", columns, rows, notes)


def _read(file: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{file}.json").read_text("utf-8"))
    return document


def _met(holds: bool) -> str:
    return "met" if holds else "missed"


def _megabytes(size: float) -> tuple[str, str]:
    return f"{size:.2f}", _met(size <= 15)
