"""How long sessions take, fairly: variants take turns, inputs differ, medians of several rounds."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from hybridkit.bench.statistics import latency_percentiles

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime
    from numpy.typing import NDArray

    from hybridkit.bench.feeds import Feed

COLD_RUNS: Final = 10  # in a round at most: filling the caches takes longer than most runs
COLD_LEAST: Final = 3
LEAST_RUNS: Final = 20  # in a round, so that a 99th percentile is near the slowest and not an invention


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: rounds for each variant, and about how many seconds a round lasts."""

    rounds: int = 5
    seconds: float = 0.15


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one run (medians over the rounds of each percentile), and samples per second."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    samples_per_second: float
    runs: int


def compare_latency(
    sessions: Mapping[str, onnxruntime.InferenceSession],
    feeds: Sequence[Feed],
    batch: int,
    effort: Effort,
    *,
    cold: bool = False,
) -> dict[str, Timing]:
    """The timing of each session on the same `feeds` [at least 1], used in turn.

    cold: before each run the caches are filled with something else.
    """
    between = _evict if cold else None
    counts = {
        name: _cold_runs(effort) if cold else _runs_per_round(session, feeds, effort)
        for name, session in sessions.items()
    }
    rounds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sessions}
    names = list(sessions)
    for turn in range(effort.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rounds[name].append(latency_percentiles(_time(sessions[name], feeds, counts[name], between)))
    timings = {}
    for name, found in rounds.items():
        p50, p90, p99 = (median(column) for column in zip(*found, strict=True))
        timings[name] = Timing(1e3 * p50, 1e3 * p90, 1e3 * p99, batch / p50, counts[name] * effort.rounds)
    return timings


def _runs_per_round(session: onnxruntime.InferenceSession, feeds: Sequence[Feed], effort: Effort) -> int:
    """As many runs as fit into a round, after warming up."""
    _time(session, feeds, 3)
    return max(LEAST_RUNS, int(effort.seconds / median(_time(session, feeds, 3))))


@functools.cache
def _cold_runs(effort: Effort) -> int:
    """Fewer where the last cache is that of a large server, of which a virtual machine has a part at best."""
    _evict()
    started = time.perf_counter()
    _evict()
    return min(COLD_RUNS, max(COLD_LEAST, int(effort.seconds / (time.perf_counter() - started))))


def _time(
    session: onnxruntime.InferenceSession,
    feeds: Sequence[Feed],
    runs: int,
    between: Callable[[], object] | None = None,
) -> list[float]:
    """Seconds of each run."""
    seconds = []
    for i in range(runs):
        feed = feeds[i % len(feeds)]
        if between is not None:
            between()
        started = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - started)
    return seconds


def _evict() -> object:
    """Read what the last cache cannot hold, as far as the system tells its size."""
    import numpy as np

    return np.add.reduce(_ballast())


@functools.cache
def _ballast() -> NDArray[np.int64]:
    import numpy as np

    return np.ones(2 * last_cache_bytes() // 8, np.int64)


def last_cache_bytes() -> int:
    """Of the largest cache of the first processor; 32 MiB where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << 10)
    return max(sizes, default=32 << 20)
