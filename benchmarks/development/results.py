"""The table of probe.py's committed result."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from hybridkit.bench.format import interval
from hybridkit.bench.statistics import Interval
from hybridkit.bench.tables import TextTable

RESULTS = Path(__file__).resolve().parents[1] / "results"


def tables() -> dict[str, TextTable]:
    """It, by name, where its result is there."""
    path = RESULTS / "probe.json"
    return {"probe": probe(json.loads(path.read_text("utf-8")))} if path.is_file() else {}


def probe(found: dict[str, Any]) -> TextTable:
    """With samples held back, without, and the best rival."""
    rows = [
        (
            f"{row['task']}, {row['precision']}",
            *(f"{row['losses'][name]['median']:.3f}" for name in ("probe", "plan", "rival")),
            row["best rival"],
            *(interval(Interval(**row["ratios"][f"probe / {name}"]), 2) for name in ("plan", "rival")),
        )
        for row in found["rows"]
    ]
    pooled = {
        name: math.exp(statistics.fmean(math.log(row["mean"][f"probe / {name}"]) for row in found["rows"]))
        for name in ("plan", "rival")
    }
    machine = found["machine"]
    notes = [
        f"Validation loss after the last step, medians over {found['seeds']} seeds; ratios in pairs of equal "
        f"seed with 95 % bootstrap intervals. Mean over all rows: {pooled['plan']:.2f} of the plan's loss, "
        f"{pooled['rival']:.2f} of the best rival's. "
        f"{machine['processor']}, {machine['cores']} cores, commit "
        f"{machine['git_commit'][:12]}.",
    ]
    columns = ("task", "probe", "plan", "best rival", "which", "probe / plan", "probe / rival")
    return TextTable("Samples held back, on tasks of development", columns, rows, notes)
