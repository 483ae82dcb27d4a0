"""What the hybrid optimisation adds to the time of a step, measured alone on the machine.

Two trainers, one with its base optimizer only, take turns of one epoch in one process; each pair of
epochs gives one ratio, and the order changes from pair to pair. Fitting the clusters happens once, before
the first step, and is reported beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from hybridkit.bench.runs import BASELINE, HYBRID, Precision, RunSpec
from hybridkit.bench.statistics import Interval, bootstrap_median


@dataclass(frozen=True, slots=True)
class OverheadSpec:
    """Which task and precision, and how many pairs of epochs."""

    task: str
    precision: Precision
    pairs: int


@dataclass(frozen=True, slots=True)
class OverheadResult:
    """overhead: (hybrid epoch / base epoch) - 1. Milliseconds are per step, `setup_seconds` once per run."""

    precision: Precision
    pairs: int
    overhead: Interval
    base_step_ms: float
    hybrid_step_ms: float
    setup_seconds: float


def measure_overhead(spec: OverheadSpec) -> OverheadResult:
    """Time `spec.pairs` pairs of epochs after one that is not counted."""
    from hybridkit.training.trainer import Trainer

    trainers, setup = {}, {}
    for arm in (BASELINE, HYBRID):
        run = RunSpec(spec.task, arm, spec.precision, seed=0, epochs=spec.pairs + 1)
        config = run.config()
        started = time.perf_counter()
        trainers[arm] = Trainer(config)
        setup[arm] = time.perf_counter() - started
    steps = min(t.sampler.steps_per_epoch for t in trainers.values())
    seconds: dict[str, list[float]] = {arm: [] for arm in trainers}
    for pair in range(spec.pairs + 1):
        order = (BASELINE, HYBRID) if pair % 2 else (HYBRID, BASELINE)
        for arm in order:
            started = time.perf_counter()
            for _ in range(steps):
                trainers[arm].step()
            seconds[arm].append(time.perf_counter() - started)
    return summarise(spec, seconds[BASELINE][1:], seconds[HYBRID][1:], steps, setup[HYBRID] - setup[BASELINE])


def summarise(
    spec: OverheadSpec, base: Sequence[float], hybrid: Sequence[float], steps: int, setup_seconds: float
) -> OverheadResult:
    """The ratio of paired epochs; `base` and `hybrid` are seconds per epoch of `steps` steps."""
    ratios = [h / b - 1 for h, b in zip(hybrid, base, strict=True)]
    return OverheadResult(
        precision=spec.precision,
        pairs=len(ratios),
        overhead=bootstrap_median(ratios),
        base_step_ms=1e3 * bootstrap_median(base).median / steps,
        hybrid_step_ms=1e3 * bootstrap_median(hybrid).median / steps,
        setup_seconds=setup_seconds,
    )
