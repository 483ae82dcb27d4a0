"""Groups, n-bit and 3:4-sparse layers: ours against ternary ones with a scale per row, MatMulNBits, ORT int8.

    python benchmarks/kernels/groups.py [--processes 5] [--threads 1 2] [--out RESULT.json]

HYBRIDKIT_LIBRARY names the library, HYBRIDKIT_ISA the instruction set. Everything runs inside ONNX Runtime,
in turns; times are net of the host's own call. "cold" is one row, layer after layer from memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import layers
import limits
from layers import FP32, INT8, OURS, OURS_FLOAT, Peer, blocks, dense, groups
from timed import Net, OrtRun, compare, ort_session

from hybridkit.bench.machine import this_machine
from hybridkit.bench.tables import TextTable
from hybridkit.packing.atomic import atomic_file
from hybridkit.runtime.native import load

RESULTS: Final = Path(__file__).resolve().parents[1] / "results"
# of a language model of 135 M weights: attention, up and down, and the head; and larger ones
SHAPES: Final = ((576, 576), (1536, 576), (576, 1536), (49152, 576), (2560, 2560), (4096, 4096))
COLD: Final = (2560, 2560)
ROWS: Final = (1, 8, 32, 128, 512)
MOST_WORK: Final = 49152 * 576 * 8  # products of a case, so that the head is measured for few rows
COLD_BYTES: Final = 256 << 20
ROUNDS, BUDGET = 3, 0.02


def _ours(bits: int, size: int, mode: str, name: str) -> Peer:
    return Peer(name, bits + 16 / size, groups(bits, size, mode), f"NBit{bits}MatMul{mode}")


def _stock(bits: int, level: int, name: str) -> Peer:
    return Peer(name, bits + 32 / 32, blocks(bits, 32, level))


PEERS: Final = (
    OURS,
    OURS_FLOAT,
    Peer("base 3, int8", 1.6, dense("Base3", "Int8"), "Base3MatMulInt8"),
    Peer("3:4-sparse, int8", 1.25, dense("Sparse34", "Int8"), "Sparse34MatMulInt8"),
    Peer("3:4-sparse, float", 1.25, dense("Sparse34", "Float"), "Sparse34MatMulFloat"),
    _ours(1, 128, "Int8", "1 bit, groups of 128, int8"),
    _ours(1, 128, "Float", "1 bit, groups of 128, float"),
    _ours(2, 64, "Int8", "2 bits, groups of 64, int8"),
    _ours(2, 128, "Int8", "2 bits, groups of 128, int8"),
    _ours(2, 64, "Float", "2 bits, groups of 64, float"),
    _ours(2, 128, "Float", "2 bits, groups of 128, float"),
    _ours(4, 32, "Int8Blocks", "4 bits, 32, int8 in blocks"),
    _ours(4, 32, "Float", "4 bits, 32, float"),
    _ours(8, 32, "Int8Blocks", "8 bits, 32, int8 in blocks"),
    _ours(8, 32, "Float", "8 bits, 32, float"),
    _stock(4, 4, "MatMulNBits 4 bits, 32, int8 in blocks"),
    _stock(4, 1, "MatMulNBits 4 bits, 32, float"),
    _stock(8, 4, "MatMulNBits 8 bits, 32, int8 in blocks"),
    INT8,
    FP32,
)
PACKED: Final = tuple(peer for peer in PEERS if peer not in (INT8, FP32))
# Ours, what it is compared with, and how many times as long it may take.
CLAIMS: Final = (
    (OURS.name, INT8.name, 1.0),
    ("base 3, int8", OURS.name, 1.10),
    ("3:4-sparse, int8", OURS.name, 1.10),
    ("3:4-sparse, float", OURS_FLOAT.name, 1.10),
    ("2 bits, groups of 64, int8", OURS.name, 1.10),
    ("2 bits, groups of 128, int8", OURS.name, 1.10),
    ("1 bit, groups of 128, int8", "2 bits, groups of 128, int8", 1.0),
    ("1 bit, groups of 128, float", "2 bits, groups of 128, float", 1.0),
    ("4 bits, 32, int8 in blocks", "MatMulNBits 4 bits, 32, int8 in blocks", 1.0),
    ("4 bits, 32, int8 in blocks", INT8.name, 1.0),
    ("4 bits, 32, float", "MatMulNBits 4 bits, 32, float", 1.0),
    ("4 bits, 32, float", FP32.name, 1.0),
    ("8 bits, 32, int8 in blocks", "MatMulNBits 8 bits, 32, int8 in blocks", 1.0),
    ("8 bits, 32, int8 in blocks", INT8.name, 1.0),
)


def main() -> None:
    """Measure in several processes, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        for case in measured(options.threads):
            print(json.dumps(case), flush=True)
        return
    native = load()
    if native is None:
        raise SystemExit("the native library is missing: build it, or name it in HYBRIDKIT_LIBRARY")
    threads = [str(count) for count in options.threads]
    command = [sys.executable, __file__, "--worker", "--threads", *threads]
    processes = []
    for number in range(options.processes):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        processes.append([json.loads(line) for line in done.stdout.splitlines()])
        print(f"process {number + 1} of {options.processes}", file=sys.stderr)
    document = {
        "machine": dataclasses.asdict(this_machine()),
        "isa": native.isa,
        "processes": len(processes),
        "cases": combined(processes),
    }
    out = options.out or RESULTS / f"groups-{native.isa}.json"
    with atomic_file(out) as file:
        file.write((json.dumps(document, indent=1) + "\n").encode())
    for made in tables(document):
        print(made.title, *made.rows, sep="\n")


def measured(threads: list[int]) -> Iterator[dict[str, Any]]:
    """Every case of one process: sizes, and microseconds of a product by name."""
    for n, k in SHAPES:
        for count in threads:
            sessions = {peer.name: _session(peer, n, k, 1, count) for peer in PEERS}
            empty = ort_session(layers.nothing(1), count)
            for m in ROWS:
                if m == 1 or n * k * m <= MOST_WORK or n < 10_000:
                    timed = {name: Net(OrtRun(s, m), OrtRun(empty, m)) for name, s in sessions.items()}
                    yield _case(n, k, str(m), count, timed)
            del sessions
            if (n, k) == COLD:
                yield _cold(n, k, count)


def _cold(n: int, k: int, threads: int) -> dict[str, Any]:
    """One after the other, since each takes twice the last cache of memory."""
    times: dict[str, float] = {}
    for peer in PACKED:
        size = max(COLD_BYTES, 2 * limits.this_machines_caches().l3)
        copies = -(-size // peer.weight_bytes(n, k))
        empty = ort_session(layers.nothing(copies), threads)
        timed = {peer.name: Net(OrtRun(_session(peer, n, k, copies, threads), 1), OrtRun(empty, 1))}
        times |= _case(n, k, "1 cold", threads, timed)["microseconds"]
    return {"n": n, "k": k, "rows": "1 cold", "threads": threads, "microseconds": times}


def _session(peer: Peer, n: int, k: int, copies: int, threads: int) -> Any:
    return ort_session(layers.model(peer, n, k, copies), threads, native=peer.operator is not None)


def _case(n: int, k: int, rows: str, threads: int, timed: dict[str, Net]) -> dict[str, Any]:
    found = compare(timed, rounds=ROUNDS, budget=BUDGET)
    times = {name: found[name] / one.products * 1e6 for name, one in timed.items()}
    return {"n": n, "k": k, "rows": rows, "threads": threads, "microseconds": times}


def combined(processes: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians over processes."""
    cases = []
    for same in zip(*processes, strict=True):
        names = same[0]["microseconds"]
        times = {name: round(median(case["microseconds"][name] for case in same), 2) for name in names}
        cases.append({**same[0], "microseconds": times})
    return cases


def tables(document: dict[str, Any]) -> Iterator[TextTable]:
    """What was promised, and the times of each shape."""
    cases = document["cases"]
    machine = document["machine"]
    yield TextTable(
        f"Groups, on {document['isa']}",
        ("what", "beside", "must be", "least", "median", "most", "where", "cases within"),
        [row for claim in CLAIMS for row in _claim(cases, *claim)],
        [
            "Time of ours over that of what stands beside it, net of the host's own call; medians of "
            f"{document['processes']} processes in turns. {machine['processor']}, {machine['cores']} cores."
        ],
    )
    for n, k in SHAPES:
        yield _times(document["isa"], [case for case in cases if (case["n"], case["k"]) == (n, k)])


def _claim(cases: list[dict[str, Any]], ours: str, beside: str, most: float) -> Iterator[tuple[str, ...]]:
    for cold in (False, True):
        ratios = [
            (times[ours] / times[beside], case)
            for case in cases
            if (case["rows"] == "1 cold") == cold and {ours, beside} <= (times := case["microseconds"]).keys()
        ]
        if ratios:
            values = sorted(ratio for ratio, _ in ratios)
            worst, case = max(ratios, key=lambda pair: pair[0])
            yield (
                f"{ours}{', cold' if cold else ''}",
                beside,
                f"<= {most:.2f}",
                f"{values[0]:.2f}",
                f"{median(values):.2f}",
                f"{worst:.2f}",
                f"{case['n']} x {case['k']}, M = {case['rows']}, {case['threads']} thread(s)",
                f"{sum(value <= most for value in values)}/{len(values)}",
            )


def _times(isa: str, cases: list[dict[str, Any]]) -> TextTable:
    rows = list(dict.fromkeys(case["rows"] for case in cases))
    by_row = {row: [case for case in cases if case["rows"] == row] for row in rows}
    threads = " / ".join(dict.fromkeys(str(case["threads"]) for case in cases))

    def cell(row: str, name: str) -> str:
        return " / ".join(f"{case['microseconds'].get(name, math.nan):,.4g}" for case in by_row[row])

    n, k = cases[0]["n"], cases[0]["k"]
    return TextTable(
        f"{n} x {k} on {isa}, microseconds on {threads} thread(s)",
        ("", *(f"M = {row}" for row in rows)),
        [(name, *(cell(row, name) for row in rows)) for name in cases[0]["microseconds"]],
    )


if __name__ == "__main__":
    main()
