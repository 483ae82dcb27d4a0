"""How fast and how far each arm trains, against AdamW whose learning rate was tuned.

All arms of a seed start from the same weights and see the same data for the same number of steps. The
baseline's learning rate is the one of LEARNING_RATES with the least median final validation loss over
the first TUNING_SEEDS seeds, for each precision; the schedule and the clustering are added on top of that
same baseline. The hybrid arm runs at the default rate of `train`, untuned: that is its claim. AdamW at that
rate is an arm too, so that what hybrid gains can be told from what its learning rate gains.

To have reached the baseline means: the first evaluation whose validation loss is at most the baseline's
last one. The baseline itself may get there before its last step, so it is asked the same question.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hybridkit.bench.pool import Runs, Tick
from hybridkit.bench.runs import ARMS, BASELINE, HYBRID, UNTUNED, Precision, RunRecord, RunSpec
from hybridkit.bench.statistics import Interval, bootstrap_median, first_reach
from hybridkit.errors import HybridkitError
from hybridkit.training.config import TrainConfig

LEARNING_RATES: Final = (1e-4, 3e-4, 1e-3, 3e-3)
DEFAULT_RATE: Final = float(TrainConfig().lr)
TUNING_SEEDS: Final = 2
PRECISIONS: Final[tuple[Precision, ...]] = ("ternary", "fp32")


@dataclass(frozen=True, slots=True)
class Curve:
    """Validation loss over steps: median over the seeds and its interval, at each evaluation."""

    steps: list[int]
    median: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm in one precision, over all seeds.

    faster_steps, faster_seconds: 1 - (arm's steps or seconds to the baseline's final loss / the baseline's
    own), paired by seed; minus infinity where the arm never got there. lower_loss: 1 - (arm's final
    validation loss / the baseline's), paired by seed. seconds: of training, evaluation not counted.
    """

    arm: str
    precision: Precision
    lr: float
    final_loss: Interval
    best_loss: Interval
    test_metric: Interval
    seconds: Interval
    faster_steps: Interval
    faster_seconds: Interval
    reached: int  # seeds that reached the baseline's final loss
    lower_loss: Interval
    active_rate: Interval | None  # share of the steps that the constraint shortened
    curve: Curve


@dataclass(frozen=True, slots=True)
class ConvergenceResult:
    """All arms; `tuning` holds the baseline's median final loss by precision and learning rate."""

    task: str
    metric: str
    seeds: list[int]
    epochs: int
    steps: int
    tuning_seeds: list[int]
    tuning: dict[str, dict[str, float]]
    same_start: bool  # whether all arms of a seed began with the same weights
    arms: list[ArmResult]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be compared. `rates` are tried for the baseline."""

    task: str
    seeds: Sequence[int]
    epochs: int
    rates: Sequence[float] = LEARNING_RATES
    precisions: Sequence[Precision] = PRECISIONS

    def tuning_runs(self) -> list[RunSpec]:
        """The runs that choose the baseline's learning rate."""
        return [
            RunSpec(self.task, BASELINE, precision, seed, self.epochs, lr)
            for seed in self.seeds[:TUNING_SEEDS]
            for precision in self.precisions
            for lr in self.rates
        ]

    def run(self, arm: str, precision: Precision, seed: int, rates: Mapping[str, float]) -> RunSpec:
        """One arm's run; `rates` is what tuning chose, 1-bit training takes the ternary one."""
        tuned = rates["ternary" if precision == "1-bit" else precision]
        lr = DEFAULT_RATE if arm in (HYBRID, UNTUNED) else tuned
        same_as = BASELINE if arm == UNTUNED else arm
        return RunSpec(self.task, same_as, precision, seed, self.epochs, lr)

    def runs(self, rates: Mapping[str, float]) -> list[RunSpec]:
        """The runs of all arms. The arms of a seed are neighbours, so that a busy moment hits them all."""
        return [
            self.run(arm, precision, seed, rates)
            for seed in self.seeds
            for precision in self.precisions
            for arm in ARMS
        ]


def tune(
    plan: Plan, runs: Runs[RunSpec, RunRecord], tick: Tick
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The chosen learning rate of each precision, and the median final losses they were chosen by."""
    records = runs.get(plan.tuning_runs(), tick)
    table: dict[str, dict[str, float]] = {
        precision: {
            f"{lr:g}": statistics.median(
                r.losses[-1] for s, r in records.items() if s.lr == lr and s.precision == precision
            )
            for lr in plan.rates
        }
        for precision in plan.precisions
    }
    chosen = {p: float(min(losses, key=lambda lr: losses[lr])) for p, losses in table.items()}
    return chosen, table


def compare(
    plan: Plan,
    runs: Runs[RunSpec, RunRecord],
    rates: Mapping[str, float],
    tuning: dict[str, dict[str, float]],
    tick: Tick,
) -> ConvergenceResult:
    """Run every arm and compare it with the baseline."""
    records = runs.get(plan.runs(rates), tick)
    metric = next(iter(records.values())).metric
    arms = []
    for precision in plan.precisions:
        baseline = [records[plan.run(BASELINE, precision, seed, rates)] for seed in plan.seeds]
        for arm in ARMS:
            own = [records[plan.run(arm, precision, seed, rates)] for seed in plan.seeds]
            arms.append(_summarise(arm, precision, own, baseline, metric))
    starts = {seed: {r.initial for s, r in records.items() if s.seed == seed} for seed in plan.seeds}
    return ConvergenceResult(
        task=plan.task,
        metric=metric,
        seeds=list(plan.seeds),
        epochs=plan.epochs,
        steps=next(iter(records.values())).steps[-1],
        tuning_seeds=list(plan.seeds[:TUNING_SEEDS]),
        tuning=tuning,
        same_start=all(len(hashes) == 1 for hashes in starts.values()),
        arms=arms,
    )


def _summarise(
    arm: str, precision: Precision, own: list[RunRecord], baseline: list[RunRecord], metric: str
) -> ArmResult:
    pairs = list(zip(own, baseline, strict=True))
    rates = [r.active_rate for r in own if r.active_rate is not None]
    faster_steps = [gain(o.losses, o.steps, b.losses, b.steps) for o, b in pairs]
    return ArmResult(
        arm=arm,
        precision=precision,
        lr=own[0].lr,
        final_loss=bootstrap_median([r.losses[-1] for r in own]),
        best_loss=bootstrap_median([min(r.losses) for r in own]),
        test_metric=bootstrap_median([r.test[metric] for r in own]),
        seconds=bootstrap_median([r.seconds[-1] for r in own]),
        faster_steps=bootstrap_median(faster_steps),
        faster_seconds=bootstrap_median([gain(o.losses, o.seconds, b.losses, b.seconds) for o, b in pairs]),
        reached=sum(math.isfinite(g) for g in faster_steps),
        lower_loss=bootstrap_median([1 - o.losses[-1] / b.losses[-1] for o, b in pairs]),
        active_rate=bootstrap_median(rates) if rates else None,
        curve=_curve(own),
    )


def gain(
    losses: Sequence[float], cost: Sequence[float], base_losses: Sequence[float], base_cost: Sequence[float]
) -> float:
    """1 - (cost to the baseline's final loss / the baseline's own); minus infinity if never reached.

    `cost` counts steps or seconds at each evaluation, 0 at the first. A loss that is there from the start
    costs nothing, and leaves nothing to compare where it is so for the baseline too: 0.
    """
    target = base_losses[-1]
    reached, base_reached = first_reach(losses, target), first_reach(base_losses, target)
    assert base_reached is not None  # at its last evaluation at the latest
    if reached is None:
        return -math.inf
    if base_cost[base_reached] == 0:
        return 0.0 if cost[reached] == 0 else -math.inf
    return 1 - cost[reached] / base_cost[base_reached]


def _curve(records: list[RunRecord]) -> Curve:
    if len({tuple(r.steps) for r in records}) != 1:
        raise HybridkitError("the runs of one arm were evaluated at different steps")
    bands = [bootstrap_median(at) for at in zip(*(r.losses for r in records), strict=True)]
    return Curve(records[0].steps, [b.median for b in bands], [b.low for b in bands], [b.high for b in bands])
