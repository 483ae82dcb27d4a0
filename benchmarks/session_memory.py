"""What a session of packed layers costs: time to load, resident memory, a run of one sample.

    python benchmarks/session_memory.py [--layers 96] [--size 2048] [--rounds 5]

Twice each, in processes of their own that take turns: with the weights in the model file or in an external
one, and on huge pages or (PR_SET_THP_DISABLE) on small ones, where they stay as ONNX Runtime loaded them. The
defaults make 96 MiB of codes: more than most caches hold, so that every run streams them from memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DISABLE_HUGE_PAGES = 41  # PR_SET_THP_DISABLE
RUNS = 40


def write_model(path: Path, layers: int, size: int, *, external: bool) -> None:
    """A chain of ternary layers [size, size] with contents of their own, about as large out as in."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    for i in range(layers):
        digits = rng.integers(0, 3, (4, size * size // 4), dtype=np.uint8)
        codes = np.bitwise_or.reduce(digits << np.array([[0], [2], [4], [6]], np.uint8))
        scale = np.full(size, (size * 2 / 3) ** -0.5, np.float32)
        values = {f"codes{i}": codes, f"scale{i}": scale, f"bias{i}": np.zeros(size, np.float32)}
        tensors += [numpy_helper.from_array(value, name) for name, value in values.items()]
        nodes.append(
            helper.make_node(
                "TernaryMatMulInt8",
                [f"x{i}", *values],
                [f"x{i + 1}"],
                domain="hybridkit",
                N=size,
                K=size,
                layout=1,
            )
        )
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["rows", size]) for i in (0, layers)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("hybridkit", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=1024)


def resident() -> dict[str, float]:
    """MiB of this process by kind, as the kernel counts them."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return {name: int(size) / 1024 for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}


def measure(path: Path, empty: Path, pages: str) -> dict[str, float]:
    """In this process: figures of one session over those of one that passes a number through."""
    from hybridkit.runtime import session

    if pages == "small":
        ctypes.CDLL(None).prctl(DISABLE_HUGE_PAGES, 1, 0, 0, 0)
    session(empty, threads=1).run(None, {"x": np.zeros(1, np.float32)})
    before, start = resident(), time.perf_counter()
    loaded = session(path, threads=1)
    load = time.perf_counter() - start
    x = np.ones((1, loaded.get_inputs()[0].shape[1]), np.float32)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        loaded.run(None, {"x0": x})
        times.append(time.perf_counter() - start)
    after = resident()
    return {
        "load_ms": 1e3 * load,
        "resident_MiB": after["Rss"] - before["Rss"],
        "huge_MiB": after["AnonHugePages"] - before["AnonHugePages"],
        "first_ms": 1e3 * times[0],
        "run_ms": 1e3 * statistics.median(times[1:]),
        "fastest_ms": 1e3 * min(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=96)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        path, empty, pages = arguments.measure
        print(json.dumps(measure(Path(path), Path(empty), pages)))
        return
    with tempfile.TemporaryDirectory() as folder:
        show(Path(folder), arguments.layers, arguments.size, arguments.rounds)


def show(folder: Path, layers: int, size: int, rounds: int) -> None:
    from hybridkit.bench.memory import write_empty

    write_empty(folder / "empty.onnx")
    variants = [(kind, pages) for kind in ("external", "inline") for pages in ("huge", "small")]
    for kind in ("external", "inline"):
        write_model(folder / f"{kind}.onnx", layers, size, external=kind == "external")
    found: dict[tuple[str, str], list[dict[str, float]]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for kind, pages in variants:
            files = [str(folder / f"{kind}.onnx"), str(folder / "empty.onnx")]
            line = [sys.executable, __file__, "--measure", *files, pages]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
            found[kind, pages].append(json.loads(done.stdout))
    packed = layers * size * size / 4 / 2**20
    print(f"{layers} layers {size} x {size}, {packed:.0f} MiB of codes; medians of {rounds} processes\n")
    names = list(found[variants[0]][0])
    print("| weights | pages |", " | ".join(names), "| resident / packed |")
    print("|---|---|", "---:|" * (len(names) + 1))
    for (kind, pages), values in found.items():
        middle = {name: statistics.median(v[name] for v in values) for name in names}
        cells = " | ".join(f"{middle[name]:.1f}" for name in names)
        print(f"| {kind} | {pages} | {cells} | {middle['resident_MiB'] / packed:.3f} |")


if __name__ == "__main__":
    main()
