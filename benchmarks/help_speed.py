"""How long every `--help` takes, from starting the interpreter to its end.

    python benchmarks/help_speed.py [RUNS]

Prints one line per command (best and median of RUNS, 10 by default) and, last, one line of JSON. The best is
what the code costs; the median includes whatever else the machine was doing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

from hybridkit.cli import VERBS

TARGET = 0.25  # seconds


def seconds(arguments: list[str]) -> float:
    """Wall-clock seconds of one `hybridkit` command."""
    started = time.perf_counter()
    line = [sys.executable, "-m", "hybridkit", *arguments]
    subprocess.run(
        line, stdout=subprocess.DEVNULL, check=True, env=os.environ | {"HYBRIDKIT_NO_PLUGINS": "1"}
    )
    return time.perf_counter() - started


def main(runs: int) -> None:
    """Measure and print."""
    results = {}
    for arguments in (["--help"], *([verb, "--help"] for verb in VERBS)):
        seconds(arguments)  # compiles and fills the file cache
        taken = [seconds(arguments) for _ in range(runs)]
        name = " ".join(["hybridkit", *arguments])
        results[name] = {"best": round(min(taken), 3), "median": round(statistics.median(taken), 3)}
        verdict = "" if min(taken) <= TARGET else f"  over {TARGET} s"
        print(f"{name:26} best {min(taken):.3f} s, median {statistics.median(taken):.3f} s{verdict}")
    print(json.dumps({"runs": runs, "target": TARGET, "processors": os.cpu_count(), "commands": results}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
