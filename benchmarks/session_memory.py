"""What a session of packed layers costs: time to load, resident memory, a run of one sample.

    python benchmarks/session_memory.py [--layers 96] [--size 2048] [--rounds 100]

With the weights in the model file or in an external one, and on huge pages or (PR_SET_THP_DISABLE) on small
ones, where they stay as ONNX Runtime loaded them. Loading and memory are measured in processes of their own,
runs in one process in which the sessions take turns. The defaults make 96 MiB of codes: more than most caches
hold, so that every run streams them from memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    import onnxruntime

DISABLE_HUGE_PAGES = 41  # PR_SET_THP_DISABLE
PROCESSES = 5
KINDS = ("external", "inline")
PAGES = ("huge", "small")
Variant = tuple[str, str]


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


def forget(path: Path) -> None:
    """Take it out of the system's cache, where a file that was just written lies in larger pieces than one
    that was read, and is faster where it is mapped. Models are read more often than written."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident() -> dict[str, float]:
    """MiB of this process by kind, as the kernel counts them."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return {name: int(size) / 1024 for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}


def open_session(path: Path, pages: str) -> onnxruntime.InferenceSession:
    from hybridkit.runtime import session

    ctypes.CDLL(None).prctl(DISABLE_HUGE_PAGES, int(pages == "small"), 0, 0, 0)
    return session(path, threads=1)


def run(session: onnxruntime.InferenceSession) -> float:
    """Milliseconds of one sample."""
    given = session.get_inputs()[0]
    feed = {given.name: np.ones((1, *given.shape[1:]), np.float32)}
    start = time.perf_counter()
    session.run(None, feed)
    return 1e3 * (time.perf_counter() - start)


def load(path: Path, empty: Path, pages: str) -> dict[str, float]:
    """Figures of one session over those of one that passes a number through. For a process of its own."""
    kept = open_session(empty, pages)
    run(kept)
    before, start = resident(), time.perf_counter()
    loaded = open_session(path, pages)
    seconds = time.perf_counter() - start
    run(loaded)
    after = resident()
    grown = {name: after[name] - before[name] for name in ("Rss", "AnonHugePages")}
    return {"load ms": 1e3 * seconds, "resident MiB": grown["Rss"], "huge MiB": grown["AnonHugePages"]}


def take_turns(files: dict[Variant, Path], rounds: int) -> dict[Variant, dict[str, float]]:
    sessions = {variant: open_session(path, variant[1]) for variant, path in files.items()}
    times: dict[Variant, list[float]] = {variant: [] for variant in files}
    for _ in range(rounds):
        for variant, session in sessions.items():
            times[variant].append(run(session))
    return {v: {"run ms": statistics.median(t), "fastest ms": min(t)} for v, t in times.items()}


def in_new_process(path: Path, empty: Path, pages: str) -> dict[str, float]:
    line = [sys.executable, __file__, "--load", str(path), str(empty), pages]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=96)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        path, empty, pages = arguments.load
        print(json.dumps(load(Path(path), Path(empty), pages)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments.layers, arguments.size, arguments.rounds)


def compare(folder: Path, layers: int, size: int, rounds: int) -> None:
    from hybridkit.bench.memory import write_empty

    empty = folder / "empty.onnx"
    write_empty(empty)
    for kind in KINDS:
        write_model(folder / f"{kind}.onnx", layers, size, external=kind == "external")
    for path in folder.iterdir():
        forget(path)
    files = {(kind, pages): folder / f"{kind}.onnx" for kind in KINDS for pages in PAGES}
    loads = [{v: in_new_process(path, empty, v[1]) for v, path in files.items()} for _ in range(PROCESSES)]
    runs = take_turns(files, rounds)
    packed = layers * size * size / 4 / 2**20
    print(f"{layers} layers {size} x {size}, {packed:.0f} MiB of codes, one thread; medians of {PROCESSES}")
    print(f"processes and of {rounds} runs\n")
    names = (
        "weights",
        "pages",
        *loads[0]["external", "huge"],
        *runs["external", "huge"],
        "resident / packed",
    )
    print("|", " | ".join(names), "|")
    print("|---" * len(names) + "|")
    for variant in files:
        figures = {
            name: statistics.median(found[variant][name] for found in loads) for name in loads[0][variant]
        }
        ratio = figures["resident MiB"] / packed
        cells = [*variant, *(f"{value:.1f}" for value in (figures | runs[variant]).values()), f"{ratio:.3f}"]
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
