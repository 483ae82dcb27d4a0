"""How long sessions take, fairly: variants take turns, inputs differ, medians of several rounds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from hybridkit.bench.statistics import latency_percentiles

if TYPE_CHECKING:
    import onnxruntime

    from hybridkit.bench.feeds import Feed

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
    sessions: Mapping[str, onnxruntime.InferenceSession], feeds: Sequence[Feed], batch: int, effort: Effort
) -> dict[str, Timing]:
    """The timing of each session on the same `feeds` [at least 1], used in turn."""
    counts = {name: _runs_per_round(session, feeds, effort) for name, session in sessions.items()}
    rounds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sessions}
    names = list(sessions)
    for turn in range(effort.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rounds[name].append(latency_percentiles(_time(sessions[name], feeds, counts[name])))
    timings = {}
    for name, found in rounds.items():
        p50, p90, p99 = (median(column) for column in zip(*found, strict=True))
        timings[name] = Timing(1e3 * p50, 1e3 * p90, 1e3 * p99, batch / p50, counts[name] * effort.rounds)
    return timings


def _runs_per_round(session: onnxruntime.InferenceSession, feeds: Sequence[Feed], effort: Effort) -> int:
    """As many runs as fit into a round, after warming up."""
    _time(session, feeds, 3)
    return max(LEAST_RUNS, int(effort.seconds / median(_time(session, feeds, 3))))


def _time(session: onnxruntime.InferenceSession, feeds: Sequence[Feed], runs: int) -> list[float]:
    """Seconds of each run."""
    seconds = []
    for i in range(runs):
        feed = feeds[i % len(feeds)]
        started = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - started)
    return seconds
