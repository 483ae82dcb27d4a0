"""Resident memory of a session, over that of a session with an empty model, in a process of its own.

python -m hybridkit.bench.memory EMPTY.onnx MODEL.onnx THREADS BOUND NATIVE    prints one JSON object
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hybridkit.errors import HybridkitError


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes over the empty session: after a run of one sample, and at the peak (None: not Linux)."""

    resident_bytes: int
    peak_bytes: int | None


def measure_memory(path: Path, empty: Path, *, threads: int, bound: int, native: bool = True) -> Memory:
    """Load `path` in a new process and run it once. `empty`: see `write_empty`. `bound`: see feeds.feed.
    `native`: with our operators, where the library is there.

    Raises HybridkitError with the last line of what went wrong.
    """
    given = [str(empty), str(path), str(threads), str(bound), str(int(native))]
    line = [sys.executable, "-m", "hybridkit.bench.memory", *given]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HybridkitError(f"measuring the memory of {path} failed: {reason}")
    return Memory(**json.loads(done.stdout))


def write_empty(path: Path) -> None:
    """A model that passes a number through."""
    import onnx

    text = '<ir_version: 8, opset_import: ["" : 18]> empty (float[1] x) => (float[1] y) { y = Identity (x) }'
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())


def _forget_peak() -> None:
    """Make Linux count the peak from here: loading the libraries needs memory too, but not the model's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """The most this process has had resident; getrusage will not do, it hands on the parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def main(arguments: list[str]) -> None:
    """Measure in this process and print."""
    import psutil

    from hybridkit.bench.feeds import feed, model_inputs, recorded_shapes
    from hybridkit.runtime.session import session

    empty, path, threads, bound = arguments[0], arguments[1], int(arguments[2]), int(arguments[3])
    native = arguments[4] == "1"
    process = psutil.Process()
    first = session(empty, threads=threads, native=native)
    first.run(None, feed(model_inputs(first), 1, 0, bound=bound, examples={}))  # loads what feeds need, too
    before = process.memory_info().rss
    _forget_peak()
    model = session(path, threads=threads, native=native, log_severity_level=3)
    examples = recorded_shapes(model.get_modelmeta().custom_metadata_map)
    model.run(None, feed(model_inputs(model), 1, 0, bound=bound, examples=examples))
    resident = process.memory_info().rss - before  # before the peak, which this may raise
    peak = _peak()
    rise = None if peak is None else peak - before
    print(json.dumps({"resident_bytes": resident, "peak_bytes": rise}))


if __name__ == "__main__":
    main(sys.argv[1:])
