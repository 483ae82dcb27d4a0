"""What the comparison found about one task, in the form of the whole bench: rows and curves.

The baseline is AdamW at a constant learning rate that was tuned; our method runs at its default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridkit.bench.convergence.findings import Findings, Standing, ratio
from hybridkit.bench.convergence.methods import OURS, RIVALS, TUNED
from hybridkit.bench.convergence.plan import DEFAULT_LR, Plan
from hybridkit.bench.convergence.settings import Precision
from hybridkit.bench.convergence.trials import Record, Trial
from hybridkit.bench.statistics import Interval, bootstrap_median


@dataclass(frozen=True, slots=True)
class Curve:
    """Validation loss over steps: median over the seeds and its interval, at each evaluation."""

    steps: list[int]
    median: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, slots=True)
class MethodResult:
    """One method in one precision, over all seeds.

    lower_loss: 1 - (its final validation loss / the tuned baseline's), paired by seed. fewer_steps,
    fewer_seconds: 1 - (ours to its final loss / its own); None for ours, minus infinity where never reached.
    reached: seeds where ours got there. tuning: median final loss by learning rate, where it did not diverge.
    active_rate: share of the steps that the constraint shortened.
    """

    method: str
    precision: Precision
    lr: float
    final_loss: Interval
    lower_loss: Interval
    test_metric: Interval
    seconds: float
    fewer_steps: Interval | None
    fewer_seconds: Interval | None
    reached: int | None
    tuning: dict[str, float]
    active_rate: Interval | None
    curve: Curve


@dataclass(frozen=True, slots=True)
class ConvergenceResult:
    """All methods. same_start: whether those of a seed began with the same loss."""

    task: str
    metric: str
    seeds: list[int]
    steps: int
    baseline: str
    same_start: bool
    methods: list[MethodResult]


def summarise(
    plan: Plan, found: Sequence[Findings], records: Mapping[Trial, Record], metric: str
) -> ConvergenceResult:
    """The rows for a plan of one task; `metric` is the name of the task's."""
    first = found[0].setting
    starts = {(t.setting.precision, t.seed): set[float]() for t in records}
    for trial, record in records.items():
        starts[trial.setting.precision, trial.seed].add(record.curve[0][1])
    return ConvergenceResult(
        task=first.task,
        metric=metric,
        seeds=list(plan.seeds),
        steps=first.steps,
        baseline=TUNED,
        same_start=all(len(losses) == 1 for losses in starts.values()),
        methods=[
            _row(plan, setting, standing, records) for setting in found for standing in setting.standings
        ],
    )


def _row(plan: Plan, found: Findings, standing: Standing, records: Mapping[Trial, Record]) -> MethodResult:
    name, setting = standing.method, found.setting
    rate = {s.method: s.lr for s in found.standings if s.method in RIVALS}
    own, base = (
        [records[plan.trial(setting, method, seed, rate.get(method))] for seed in plan.seeds]
        for method in (name, TUNED)
    )
    steps, seconds = found.steps.get(name), found.seconds.get(name)
    return MethodResult(
        method=name,
        precision=setting.precision,
        lr=DEFAULT_LR if standing.lr is None else standing.lr,
        final_loss=standing.loss,
        lower_loss=bootstrap_median([1 - ratio(o.loss, b.loss) for o, b in zip(own, base, strict=True)]),
        test_metric=standing.metric,
        seconds=standing.seconds,
        fewer_steps=_saved(steps) if steps else None,
        fewer_seconds=_saved(seconds) if seconds else None,
        reached=found.reached.get(name),
        tuning={f"{lr:g}": loss for lr, loss in standing.spread.items() if math.isfinite(loss)},
        active_rate=found.active if name == OURS else None,
        curve=curve([r.curve for r in own]),
    )


def _saved(share: Interval) -> Interval:
    return Interval(1 - share.median, 1 - share.high, 1 - share.low)


def curve(runs: Sequence[Sequence[tuple[int, float]]]) -> Curve:
    """The bands of (step, loss) curves; those that broke off before the others are left out."""
    longest = max(map(len, runs))
    whole = [run for run in runs if len(run) == longest]
    bands = [bootstrap_median([loss for _, loss in at]) for at in zip(*whole, strict=True)]
    steps = [step for step, _ in whole[0]]
    return Curve(steps, [b.median for b in bands], [b.low for b in bands], [b.high for b in bands])
