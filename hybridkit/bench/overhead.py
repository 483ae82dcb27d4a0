"""What the hybrid optimisation adds to the time of a step, measured alone on the machine.

Three trainers take turns of a few steps in one process: hybrid, its base optimizer alone (no controller, no
constraint, no clusters), and AdamW for comparison. Each round gives one ratio of the first two, and the order
turns from round to round. What is done once, before the first step, is reported beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hybridkit.bench.convergence.identity import key
from hybridkit.bench.convergence.settings import Precision, Setting
from hybridkit.bench.statistics import Interval, bootstrap_median
from hybridkit.training.config import HYBRID_DEFAULTS, TrainConfig, resolve

STEPS: Final = 10  # of a turn
BASE, HYBRID, ADAMW = "base", "hybrid", "adamw"
FLAGS: Final[dict[str, dict[str, object]]] = {
    ADAMW: {},
    BASE: {"optimizer": HYBRID_DEFAULTS["optimizer"]},
    HYBRID: {"hybrid": True},
}


@dataclass(frozen=True, slots=True)
class OverheadSpec:
    """Which setting, and how many rounds."""

    setting: Setting
    rounds: int

    def key(self) -> str:
        """Its name in the store."""
        return key(self.config(HYBRID), measured="time")

    def config(self, which: str) -> TrainConfig:
        """One of the three, on one thread, long enough for every round and one that is not counted."""
        return resolve(seed=0, threads=1, **self.setting.flags(STEPS * (self.rounds + 1)), **FLAGS[which])  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class OverheadResult:
    """overhead: (hybrid / its base optimizer alone) - 1. Milliseconds are per step, `setup_seconds` once."""

    precision: Precision
    rounds: int
    overhead: Interval
    base_step_ms: float
    hybrid_step_ms: float
    adamw_step_ms: float
    setup_seconds: float


def measure_overhead(spec: OverheadSpec) -> OverheadResult:
    """Time `spec.rounds` rounds after one that is not counted."""
    from hybridkit.training.trainer import Trainer

    trainers, setup = {}, {}
    for which in FLAGS:
        config = spec.config(which)
        started = time.perf_counter()
        trainers[which] = Trainer.seeded(config)
        setup[which] = time.perf_counter() - started
    seconds: dict[str, list[float]] = {which: [] for which in FLAGS}
    names = list(FLAGS)
    for turn in range(spec.rounds + 1):
        for which in names[turn % 3 :] + names[: turn % 3]:
            started = time.perf_counter()
            for _ in range(STEPS):
                trainers[which].step()
            seconds[which].append(time.perf_counter() - started)
    counted = {which: values[1:] for which, values in seconds.items()}
    return summarise(spec, counted, setup[HYBRID] - setup[BASE])


def summarise(
    spec: OverheadSpec, seconds: Mapping[str, Sequence[float]], setup_seconds: float
) -> OverheadResult:
    """The ratio of turns of one round; `seconds`: of each turn of STEPS steps, by trainer."""
    ratios = [h / b - 1 for h, b in zip(seconds[HYBRID], seconds[BASE], strict=True)]
    step_ms = {which: 1e3 * bootstrap_median(values).median / STEPS for which, values in seconds.items()}
    return OverheadResult(
        precision=spec.setting.precision,
        rounds=len(ratios),
        overhead=bootstrap_median(ratios),
        base_step_ms=step_ms[BASE],
        hybrid_step_ms=step_ms[HYBRID],
        adamw_step_ms=step_ms[ADAMW],
        setup_seconds=setup_seconds,
    )
