"""How long `hybridkit --help` takes, against `import typer`, which it cannot do without. Target: 0.25 s.

python benchmarks/help_latency.py [--rounds 20] [--out benchmarks/results/help_latency.json]

The commands take turns, so that a busy moment hits them all; the medians of wall time are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from hybridkit.bench.machine import this_machine
from hybridkit.bench.statistics import bootstrap_median
from hybridkit.packing.atomic import atomic_file

TARGET_SECONDS = 0.25
COMMANDS = {
    "hybridkit --help": [sys.executable, "-m", "hybridkit", "--help"],
    "hybridkit train --help": [sys.executable, "-m", "hybridkit", "train", "--help"],
    "import typer": [sys.executable, "-c", "import typer"],
    "python": [sys.executable, "-c", "pass"],
}


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each command in each round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(rounds + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def document(seconds: dict[str, list[float]]) -> dict[str, object]:
    """The result, as it is committed."""
    medians = {name: asdict(bootstrap_median(values)) for name, values in seconds.items()}
    return {
        "schema": "hybridkit/help-latency/1",
        "machine": asdict(this_machine()),
        "rounds": len(next(iter(seconds.values()))),
        "target_seconds": TARGET_SECONDS,
        "seconds": medians,
        "met": medians["hybridkit --help"]["median"] <= TARGET_SECONDS,
    }


def main() -> None:
    """Measure, print a card and one final JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = document(measure(arguments.rounds))
    for name, found in result["seconds"].items():  # type: ignore[attr-defined]
        print(f"{name:24} {found['median']:.3f} s [{found['low']:.3f}, {found['high']:.3f}]")
    print(f"{'target':24} {TARGET_SECONDS:.3f} s: {'met' if result['met'] else 'missed'}")
    if arguments.out:
        with atomic_file(arguments.out) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps(result))


if __name__ == "__main__":
    main()
