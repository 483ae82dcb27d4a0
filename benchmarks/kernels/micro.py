"""How fast the C kernels are alone, warm and cold, against this machine's limits. Needs only a compiler.

python benchmarks/kernels/micro.py --library build/libhybridkit.so --shape 2560x2560 --m 1,8,128 --threads 1,2
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import limits
from kernel import Layer, Products, code_bytes

from hybridkit.errors import HybridkitError
from hybridkit.runtime.native import ACTIVATIONS, CODECS, Native

HEADINGS = (
    "N x K",
    "threads",
    "mode",
    "M",
    "codes",
    "us",
    "GOP/s",
    "of peak",
    "floor us",
    "x floor",
    "kernel",
    "tasks",
)


def main() -> None:
    """Measure and print a line for each case."""
    given = _arguments()
    try:
        native = Native(given.library.absolute())
        if given.isa:
            native.set_isa(given.isa)
    except HybridkitError as error:
        raise SystemExit(str(error)) from None
    isa = native.isa
    found = {t: limits.measure("avx2" if isa == "scalar" else isa, t) for t in given.threads}
    for t, limit in found.items():
        print(f"{t} thread(s), {isa}: {limit}")
    print(" ".join(f"{heading:>9}" for heading in HEADINGS))
    for n, k in given.shape:
        for mode in given.mode:
            for cold in given.codes:
                _measure(native, n, k, mode, cold == "cold", given, found)


def _measure(
    native: Native,
    n: int,
    k: int,
    mode: str,
    cold: bool,
    given: argparse.Namespace,
    found: dict[int, limits.Limits],
) -> None:
    one = code_bytes(given.codec, n, k)
    copies = -(-8 * limits.this_machines_caches().l3 // one) if cold else 1
    layer = Layer(native, n, k, codec=given.codec, mode=mode, copies=min(copies, 100_000), huge=given.huge)
    for m in given.m:
        for t, limit in found.items():
            seconds = _seconds(layer.products(m, t), given.seconds)
            case = {"m": m, "n": n, "k": k, "code_bytes": one, "mode": mode, "cold": cold, "huge": given.huge}
            floor = limits.floor_seconds(limit, limits.this_machines_caches(), **case)
            rate = 2 * m * n * k / seconds
            peak = limit.int8 if mode == "int8" else limit.fp32
            cells = (
                f"{n}x{k}",
                str(t),
                mode,
                str(m),
                "cold" if cold else "warm",
                f"{1e6 * seconds:.2f}",
                f"{rate / 1e9:.1f}",
                f"{100 * rate / peak:.0f} %",
                f"{1e6 * floor:.2f}",
                f"{seconds / floor:.2f}",
                native.kernel(given.codec, mode, n, k, m),
                str(native.tasks(given.codec, mode, n, k, m)),
            )
            print(" ".join(f"{cell:>9}" for cell in cells), flush=True)
    layer.close()


def _seconds(products: Products, budget: float, rounds: int = 5) -> float:
    once = (products.seconds(3), products.seconds(3))[1]
    calls = max(3, min(100_000, int(budget / rounds / once)))
    return median(products.seconds(calls) for _ in range(rounds))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", type=Path, required=True, help="libhybridkit.so")
    parser.add_argument("--shape", type=_shapes, default=[(2560, 2560)], help="NxK, several with commas")
    parser.add_argument("--m", type=_integers, default=[1, 8, 128], help="rows of activations")
    parser.add_argument("--threads", type=_integers, default=[1])
    parser.add_argument(
        "--isa", help="scalar, avx2, avxvnni, avx512vnni, amx or neon (default: the library's choice)"
    )
    parser.add_argument("--codec", choices=list(CODECS), default="ternary")
    parser.add_argument(
        "--mode", type=_one_of(ACTIVATIONS), default=["int8"], help="int8, float or both with a comma"
    )
    parser.add_argument(
        "--codes", type=_one_of(("warm", "cold")), default=["warm", "cold"], help="warm, cold"
    )
    parser.add_argument("--small-pages", dest="huge", action="store_false", help="4 KiB pages for the codes")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    return parser.parse_args()


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _shapes(text: str) -> list[tuple[int, int]]:
    shapes = [part.lower().split("x") for part in text.split(",")]
    if any(len(shape) != 2 for shape in shapes):
        raise argparse.ArgumentTypeError(f"{text!r} is not NxK")
    return [(int(n), int(k)) for n, k in shapes]


def _one_of(known: object) -> object:
    def parse(text: str) -> list[str]:
        parts = text.split(",")
        if unknown := [part for part in parts if part not in known]:  # type: ignore[operator]
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")  # type: ignore
        return parts

    return parse


if __name__ == "__main__":
    main()
