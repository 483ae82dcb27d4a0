"""Instructions of the kernels: what does not move with the machine's load.

    python benchmarks/kernels/instructions.py --library libhybridkit.so [--arm BUILD] [--out RESULT.json]

Products of 32 x 2560 are run by single steps (native/instructions.cc), under every instruction set of this
processor but `scalar`. BUILD is a folder that CMake built for 64-bit Arm with native/aarch64.cmake; `neon` is
then counted in qemu-user, as the difference between two products and one.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import toolchain

from hybridkit.bench.machine import this_machine
from hybridkit.bench.tables import TextTable
from hybridkit.packing.atomic import atomic_file
from hybridkit.runtime.native import CODECS, Native

RESULTS: Final = Path(__file__).resolve().parents[1] / "results"
N, K, WEIGHTS = 32, 2560, 32  # counts are told for so many weights and a row of activations
ROWS: Final = (1, 8)
INT8, FLOAT, BLOCKS = 0, 1, 2
# What is multiplied: codec, activations, columns that share a scale.
CASES: Final = {
    "ternary, int8": ("ternary", INT8, 0),
    "ternary, float": ("ternary", FLOAT, 0),
    "base 3, int8": ("base3", INT8, 0),
    "3:4-sparse, int8": ("sparse34", INT8, 0),
    "1 bit, int8": ("binary", INT8, 0),
    "1 bit, groups of 128, int8": ("nbit1", INT8, 128),
    "2 bits, groups of 64, int8": ("nbit2", INT8, 64),
    "2 bits, groups of 128, int8": ("nbit2", INT8, 128),
    "2 bits, groups of 128, float": ("nbit2", FLOAT, 128),
    "4 bits, 32, int8 in blocks": ("nbit4", BLOCKS, 32),
    "4 bits, 32, float": ("nbit4", FLOAT, 32),
    "8 bits, 32, int8 in blocks": ("nbit8", BLOCKS, 32),
}
_CASES: Final = tuple(itertools.product(CASES, ROWS))


def main() -> None:
    """Count and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--arm", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "instructions.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(counted(options.library.absolute(), Path(folder)))
        if options.arm:
            rows += counted_on_arm(options.arm.absolute(), Path(folder))
    document = {"machine": dataclasses.asdict(this_machine()), "n": N, "k": K, "rows": rows}
    with atomic_file(options.out) as file:
        file.write((json.dumps(document, indent=1) + "\n").encode())
    made = table(document)
    print(made.title, made.columns, *made.rows, sep="\n")


def counted(library: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """On this processor."""
    program = _program(toolchain.compiler(), folder / "instructions")
    for isa in Native(library).isas:
        for name, m in _CASES if isa != "scalar" else ():
            words = [program, library, isa, *_words(name, m)]
            yield _row(isa, name, m, int(_output(words)))


def counted_on_arm(build: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """In an emulator that writes a line for each instruction."""
    emulator = shutil.which("qemu-aarch64")
    if emulator is None:
        raise SystemExit("qemu-aarch64 is not there (Debian: qemu-user)")
    program = _program("aarch64-linux-gnu-g++", folder / "instructions-arm")
    library, log = build / "native/libhybridkit.so", folder / "executed"
    machine = ["-cpu", "max", "-L", "/usr/aarch64-linux-gnu"]
    steps = [emulator, *machine, "-singlestep", "-d", "exec,nochain", "-D", log]
    for name, m in _CASES:
        lines = []
        for repeats in (1, 2):
            _output([*steps, program, library, "neon", *_words(name, m), str(repeats)])
            lines.append(_lines(log))
        yield _row("neon", name, m, lines[1] - lines[0])


def _words(name: str, m: int) -> list[str]:
    codec, activations, group = CASES[name]
    return [str(word) for word in (CODECS[codec], activations, N, K, m, group)]


def _row(isa: str, name: str, m: int, instructions: int) -> dict[str, Any]:
    return {"isa": isa, "name": name, "rows": m, "instructions": instructions}


def _program(compiler: str, target: Path) -> Path:
    source, include = toolchain.NATIVE / "instructions.cc", f"-I{toolchain.KERNELS}"
    subprocess.run([compiler, "-std=c++17", "-O2", include, source, "-o", target, "-ldl"], check=True)
    return target


def _lines(file: Path) -> int:
    with file.open("rb") as opened:
        return sum(1 for _ in opened)


def _output(words: list[Any]) -> str:
    return subprocess.run([*map(str, words)], check=True, stdout=subprocess.PIPE, text=True).stdout


def table(document: dict[str, Any]) -> TextTable:
    """For 32 weights and one row of activations, by instruction set and rows."""
    rows = document["rows"]
    found = {(row["isa"], row["name"], row["rows"]): row["instructions"] for row in rows}
    isas = list(dict.fromkeys(row["isa"] for row in rows))

    def cell(isa: str, name: str, m: int) -> str:
        count = found.get((isa, name, m))
        return "" if count is None else f"{count * WEIGHTS / (document['n'] * document['k'] * m):.2f}"

    return TextTable(
        f"Instructions for {WEIGHTS} weights and a row of activations",
        ("", *(f"{isa}, M = {m}" for isa in isas for m in ROWS)),
        [(name, *(cell(isa, name, m) for isa in isas for m in ROWS)) for name in CASES],
        [
            f"All that a product of {document['n']} x {document['k']} executes on one thread, quantising "
            "its activations too, and expanding codes that an instruction set does not read (base 3, "
            "3:4-sparse), which a session does once. neon: in qemu-user."
        ],
    )


if __name__ == "__main__":
    main()
