"""Single layers: our kernels inside ONNX Runtime against ORT fp32, int8 and MatMulNBits, and ggml's TQ2_0.

python benchmarks/kernels/run.py --quick       one process, three shapes: to see that it works
python benchmarks/kernels/run.py               five processes; writes benchmarks/results/kernels-ISA.json
python benchmarks/kernels/run.py --show FILE   the tables of a file

HYBRIDKIT_LIBRARY names the library, HYBRIDKIT_ISA the instruction set. Needs a C++ compiler. With
`python benchmarks/kernels/ggml.py` first, ggml is among the peers. After each process the results so far
are in FILE.partial; Ctrl-C leaves them there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import toolchain
from measure import Plan
from report import LARGE, shape_tables, verdict_table
from results import Results, combine, read, write
from rich.console import Console
from rich.table import Table

from hybridkit.bench.machine import this_machine
from hybridkit.bench.tables import TextTable
from hybridkit.runtime import library_path

HERE: Final = Path(__file__).resolve().parent
SMALL: Final = ((384, 384), (1536, 384), (1000, 777), (1, 1), (3, 5))
FULL: Final = Plan(
    shapes=(*LARGE, *SMALL), cold=LARGE, rows=(1, 8, 32, 128, 512), threads=(1, 2), rounds=3, budget=0.03
)
QUICK: Final = replace(
    FULL, shapes=(LARGE[0], SMALL[0], SMALL[2]), cold=LARGE[:1], rows=(1, 8, 128), rounds=2, budget=0.02
)
PROCESSES: Final = 5


def main() -> int:
    """Measure, print and save; the exit code."""
    given = _arguments()
    if given.show:
        _print(read(given.show))
        return 0
    if library_path() is None:
        raise SystemExit("the native library is missing: build it, or name it in HYBRIDKIT_LIBRARY")
    for part in ("limits", "timing"):
        toolchain.build(part)
    plan = replace(QUICK if given.quick else FULL, threads=tuple(given.threads))
    processes: list[list[dict[str, Any]]] = []
    started, out = time.perf_counter(), None
    try:
        for number in range(1 if given.quick else given.processes):
            processes.append(_process(plan, f"process {number + 1}"))
            results = combine(processes, _about(plan, time.perf_counter() - started))
            if given.out or not given.quick:
                out = given.out or HERE.parent / "results" / f"kernels-{results.isa}.json"
                write(results, _partial(out))
    except KeyboardInterrupt:
        where = f"; they are in {_partial(out)}" if out else ""
        print(f"interrupted after {len(processes)} complete process(es){where}", file=sys.stderr)
        return 130
    _print(results)
    if out:
        _partial(out).replace(out)
        print(f"written: {out}", file=sys.stderr)
    return 0


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _process(plan: Plan, title: str) -> list[dict[str, Any]]:
    """What one process found, with a line of progress for each shape. Raises SystemExit if it failed."""
    command = [sys.executable, str(HERE / "measure.py"), json.dumps(asdict(plan))]
    found: list[dict[str, Any]] = []
    started, last = time.perf_counter(), ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                found.append(json.loads(line))
                where = "{n} x {k}, {threads} thread(s)".format(**found[-1]) if "peer" in found[-1] else last
                if where != last:
                    print(f"{title}, {time.perf_counter() - started:4.0f} s: {where}", file=sys.stderr)
                last = where
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise SystemExit(f"{title} failed with exit code {process.returncode}")
    return found


def _about(plan: Plan, seconds: float) -> Mapping[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = [line for line in lines if line.startswith(("flags", "Features"))]
    return {
        "machine": asdict(this_machine()),
        "processor_flags": flags[0].partition(":")[2].strip() if flags else "",
        "plan": asdict(plan),
        "wall_seconds": round(seconds, 1),
    }


def _print(results: Results) -> None:
    console = Console()
    for table in (*shape_tables(results), verdict_table(results)):
        console.print(_rich(table))
        for note in table.notes:
            console.print(note, highlight=False)


def _rich(table: TextTable) -> Table:
    made = Table(title=table.title, title_justify="left")
    for number, heading in enumerate(table.columns):
        made.add_column(heading, justify="left" if number == 0 else "right")
    for row in table.rows:
        made.add_row(*row)
    return made


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one process, three shapes; nothing is written")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="another file for the results")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
