"""The tables of this folder's committed results: rows by bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybridkit.bench.tables import TextTable

RESULTS = Path(__file__).resolve().parents[1] / "results"
OURS = "ours"  # how our rows begin


def tables() -> dict[str, TextTable]:
    """Those whose results are there, by name."""
    made = {
        "quality-encoder": encoder,
        "quality-decoder": decoder,
        "samples-encoder": samples_encoder,
        "samples-decoder": samples_decoder,
        "third-party": third_party,
    }
    return {name: make() for name, make in made.items() if (RESULTS / f"{name}.json").is_file()}


def encoder() -> TextTable:
    """A sentence encoder, ours and other tools'."""
    found = _read("quality-encoder")
    rows = [
        (_name(row), _megabytes(row), f"{row['cosine']:.4f}", f"{row['spearman']:.2f}")
        for row in _ordered(found)
    ]
    notes = [f"2,048 sentences of novels, the STS benchmark's test pairs. {_machine(found)}"]
    columns = ("weights", "MB", "mean cosine to the original", "Spearman")
    return TextTable("all-MiniLM-L6-v2 without training", columns, rows, notes)


def decoder() -> TextTable:
    """A small language model, ours and other tools'."""
    found = _read("quality-decoder")
    rows = [
        (
            _name(row),
            _megabytes(row),
            f"{row['perplexity novels']:,.2f}",
            f"{row['perplexity addresses']:,.2f}",
            f"{row['kl']:.3f}",
            f"{100 * row['same']:.1f}",
        )
        for row in _ordered(found)
    ]
    notes = [f"{found['tokens']:,} tokens of each text. {_machine(found)}"]
    columns = ("weights", "MB", "perplexity, novels", "addresses", "KL, nats", "same likeliest token, %")
    return TextTable("SmolLM2-135M without training", columns, rows, notes)


def samples_encoder() -> TextTable:
    """A sentence encoder in ternary weights, by samples of calibration."""
    found = _read("samples-encoder")
    rows = [(f"{row['samples']:,}", f"{row['cosine']:.4f}", _minutes(row)) for row in found["rows"]]
    columns = ("sentences", "mean cosine to the original", "minutes, one thread")
    return TextTable("all-MiniLM-L6-v2, ternary, by samples", columns, rows, [_recipe(found)])


def samples_decoder() -> TextTable:
    """A small language model in ternary weights, by samples of calibration."""
    found = _read("samples-decoder")
    rows = [
        (
            f"{row['samples']:,}",
            f"{row['perplexity novels']:,.1f}",
            f"{row['perplexity addresses']:,.1f}",
            f"{row['kl']:.3f}",
            _minutes(row),
        )
        for row in found["rows"]
    ]
    columns = (
        "samples of 512 tokens",
        "perplexity, novels",
        "addresses",
        "KL, nats",
        "minutes of one thread",
    )
    return TextTable("SmolLM2-135M, ternary, by samples", columns, rows, [_recipe(found)])


def third_party() -> TextTable:
    """ONNX files of others within 1 %, beside ONNX Runtime's int8."""
    rows = []
    for name, found in _read("third-party").items():
        files = (found["original"], found["ours"], found["int8"])
        bytes_ = [f"{each['bytes'] / 1e6:.2f}" for each in files]
        quality = [f"{100 * each['same']:.1f} ({each['cosine']:.4f})" for each in files[1:]]
        rows.append((name, *bytes_, *quality, f"{found['decisions']:,}"))
    columns = ("model", "MB", "ours, MB", "int8, MB", "ours, % same (cosine)", "int8, % same (cosine)", "of")
    notes = [
        "Decisions as the original's, on samples that nothing was fitted to. "
        "int8: ONNX Runtime's quantize_dynamic as it comes."
    ]
    return TextTable("Others' files within 1 %", columns, rows, notes)


def _ordered(found: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(found["rows"], key=lambda row: -row["bytes"])


def _name(row: dict[str, Any]) -> str:
    name: str = row["name"]
    return f"**{name}**" if name.startswith(OURS) else name


def _minutes(row: dict[str, Any]) -> str:
    return f"{row['seconds'] / 60:.0f}"


def _recipe(found: dict[str, Any]) -> str:
    options = " ".join(found["options"])
    return f"Groups of 64{f', `{options}`' if options else ''}. {_machine(found)}"


def _megabytes(row: dict[str, Any]) -> str:
    return f"{row['bytes'] / 1e6:.1f}"


def _machine(found: dict[str, Any]) -> str:
    return f"{found['machine']['processor']}, {found['machine']['cores']} cores."


def _read(file: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{file}.json").read_text("utf-8"))
    return document
