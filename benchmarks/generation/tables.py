"""The tables of this folder's committed results: tokens a second by engine."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from hybridkit.bench.tables import TextTable

RESULTS = Path(__file__).resolve().parents[1] / "results"
TITLES = {
    "generation": "SmolLM2-135M: tokens a second",
    "generation-one": "1.07 billion random weights: tokens a second",
}
MEASURES = ("prompt 128", "prompt 512", "decode 16", "decode 1024")
ENGINES = {"ours": "hybridkit", "genai": "onnxruntime-genai", "llama": "llama.cpp"}


def tables() -> dict[str, TextTable]:
    """By name, of the results that are there."""
    files = {name: RESULTS / f"{name}.json" for name in TITLES}
    found = {name: table(TITLES[name], file) for name, file in files.items() if file.is_file()}
    return found | {"attention": attention_table(RESULTS / "attention.json")}


def attention_table(file: Path) -> TextTable:
    """Medians of ratios of one round."""
    found = json.loads(file.read_text("utf-8"))
    rows = []
    for row in found["rows"]:
        own, stock, memory = zip(*row["rounds"], strict=True)
        ratios = sorted(ours / theirs for ours, theirs in zip(own, stock, strict=True))
        reading = statistics.median(ours / read for ours, read in zip(own, memory, strict=True))
        rows.append(
            (
                row["shape"],
                str(row["threads"]),
                f"{row['tokens']:,} behind {row['past']:,}",
                f"{statistics.median(own):.3f}",
                f"{statistics.median(stock):.3f}",
                f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]",
                f"{reading:.2f}" if row["tokens"] == 1 else "",
            )
        )
    machine = found["machine"]
    note = (
        f"Milliseconds a layer, medians of {len(found['rows'][0]['rounds'])} rounds, the "
        "least and the most of the ratios in brackets; floor: one thread reads the cache once. "
        f"{machine['processor']}, {machine['cores']} cores."
    )
    columns = ("heads of", "threads", "tokens", "ours, ms", "ONNX Runtime, ms", "ratio", "of the floor")
    title = "Attention with a cache: CachedAttention and GroupQueryAttention"
    return TextTable(title, columns, rows, [note])


def table(title: str, file: Path) -> TextTable:
    """Medians over rounds, with the least and the most."""
    found = json.loads(file.read_text("utf-8"))
    rows = [
        (
            ENGINES[row["engine"]],
            row["name"],
            str(row["threads"]),
            f"{row['bytes'] / 1e6:.0f}",
            *(_spread(row, name) for name in MEASURES),
            f"{_median(row, 'load'):.2f}",
            f"{_median(row, 'peak_bytes') / 1e6:,.0f}",
        )
        for row in sorted(found["rows"], key=lambda row: (row["threads"], row["name"], row["engine"]))
    ]
    machine = found["machine"]
    rounds = len(found["rows"][0]["runs"])
    notes = [
        "Tokens a second: prompts of 128 and 512 tokens, 32 tokens found behind 16 and 1,024; medians of "
        f"{rounds} processes in turns, the least and the most in brackets. {machine['processor']}, "
        f"{machine['cores']} cores."
    ]
    columns = ("engine", "weights", "threads", "MB", *MEASURES, "load, s", "memory, MB")
    return TextTable(title, columns, rows, notes)


def _values(row: dict[str, Any], name: str) -> list[float]:
    return [run[name] for run in row["runs"]]


def _median(row: dict[str, Any], name: str) -> float:
    return statistics.median(_values(row, name))


def _spread(row: dict[str, Any], name: str) -> str:
    values = _values(row, name)
    return f"{_median(row, name):.0f} [{min(values):.0f}, {max(values):.0f}]"
