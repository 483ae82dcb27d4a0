"""What the trials say: ratios in pairs of equal seed, medians with 95 % bootstrap intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hybridkit.bench.arena.cells import Cell
from hybridkit.bench.arena.methods import BASELINE, OURS
from hybridkit.bench.arena.plan import DEFAULT_LR, DEFAULT_RADIUS, Plan, Rates
from hybridkit.bench.arena.trials import Record, Trial
from hybridkit.bench.overhead import OverheadResult
from hybridkit.bench.statistics import Interval, Number, bootstrap_median


@dataclass(frozen=True, slots=True)
class Standing:
    """One method in one cell. lr None: the default. ratio: its final loss over our method's, in pairs.

    error: of quantisation, against its full-precision twin, where that was measured.
    """

    method: str
    lr: float | None
    loss: Interval
    ratio: Interval
    metric: Interval
    seconds: float
    error: Interval | None = None
    spread: dict[float, Number] = field(default_factory=dict)  # median loss by learning rate


@dataclass(frozen=True, slots=True)
class Ranking:
    """The methods that were run in one cell."""

    cell: Cell
    standings: list[Standing]


@dataclass(frozen=True, slots=True)
class CellFindings(Ranking):
    """Everything about one cell.

    steps, seconds: of ours to a rival's final loss over the rival's own, by rival; infinite where never
    reached. reached: how many seeds did. lower_loss: 1 - ours / baseline. best: the best tuned rival;
    against_best: ours / its loss. mistakes: final loss over that of the default, by what was set wrong.
    less_error: 1 - our quantisation error / the baseline's.
    """

    steps: dict[str, Interval]
    seconds: dict[str, Interval]
    reached: dict[str, int]
    lower_loss: Interval
    best: str
    against_best: Interval
    mistakes: dict[str, Interval]
    active: Interval | None
    horizons: dict[float, Interval]
    less_error: Interval | None
    overhead: OverheadResult | None


Records = Mapping[Trial, Record]


def findings(
    plan: Plan, records: Records, rates: Rates, overheads: Mapping[Cell, OverheadResult] | None = None
) -> list[CellFindings]:
    """One for each cell of the plan, whose trials must all be there."""
    return [_of_cell(plan, cell, records, rates, (overheads or {}).get(cell)) for cell in plan.cells]


def rankings(cells: Sequence[Mapping[str, Sequence[Trial]]], records: Records) -> list[Ranking]:
    """One for each cell that has no rival tuned: its trials by method, ours among them."""
    found = []
    for trials in cells:
        runs = {method: [records[trial] for trial in own] for method, own in trials.items()}
        first = {method: own[0] for method, own in trials.items()}
        standings = [
            _standing(name, DEFAULT_LR if name == BASELINE else first[name].lr, own, runs[OURS])
            for name, own in runs.items()
        ]
        found.append(Ranking(first[OURS].cell, standings))
    return found


def _of_cell(
    plan: Plan, cell: Cell, records: Records, rates: Rates, overhead: OverheadResult | None
) -> CellFindings:
    def of(method: str, lr: float | None = None) -> list[Record]:
        return [records[Trial(cell, method, seed, lr)] for seed in plan.seeds]

    ours, baseline = of(OURS), of(BASELINE)
    rivals = {name: of(name, rates[cell, name]) for name in plan.rivals(cell)}
    others = {BASELINE: baseline, **rivals}
    standings = [_standing(name, None, of(name), ours) for name in plan.own(cell)]
    standings.append(_standing(BASELINE, DEFAULT_LR, baseline, ours))
    for name, runs in rivals.items():
        spread = {
            lr: statistics.median(records[Trial(cell, name, s, lr)].loss for s in plan.seeds[:2])
            for lr in plan.rates(name)
        }
        standings.append(_standing(name, rates[cell, name], runs, ours, spread))
    shares = {
        share: [records[Trial(cell, OURS, seed, share=share)] for seed in plan.seeds] for share in plan.shares
    } | {1.0: ours}
    reach = {
        name: [
            share_to_reach({share: runs[i].loss for share, runs in shares.items()}, theirs[i].loss)
            for i in range(len(plan.seeds))
        ]
        for name, theirs in others.items()
    }
    best = min(rivals, key=lambda name: statistics.median(r.loss for r in rivals[name]))
    return CellFindings(
        cell=cell,
        standings=standings,
        steps={name: bootstrap_median(values) for name, values in reach.items()},
        seconds={
            name: bootstrap_median(
                [
                    share * mine.seconds / theirs.seconds
                    for share, mine, theirs in zip(values, ours, others[name], strict=True)
                ]
            )
            for name, values in reach.items()
        },
        reached={name: sum(map(math.isfinite, values)) for name, values in reach.items()},
        lower_loss=_pairs(ours, baseline, lambda r: 1 - r),
        best=best,
        against_best=_pairs(ours, rivals[best]),
        mistakes=_mistakes(plan, cell, records, ours),
        active=_interval([r.active for r in ours]),
        horizons={share: bootstrap_median([r.loss for r in runs]) for share, runs in sorted(shares.items())},
        less_error=_less_error(ours, baseline),
        overhead=overhead,
    )


def _standing(
    name: str,
    lr: float | None,
    runs: Sequence[Record],
    ours: Sequence[Record],
    spread: dict[float, float] | None = None,
) -> Standing:
    return Standing(
        method=name,
        lr=lr,
        loss=bootstrap_median([r.loss for r in runs]),
        ratio=_pairs(runs, ours),
        metric=bootstrap_median([-math.inf if math.isnan(r.metric) else r.metric for r in runs]),
        seconds=statistics.median(r.seconds for r in runs),
        error=_interval([r.error for r in runs]),
        spread=spread or {},
    )


def _pairs(
    ours: Sequence[Record],
    theirs: Sequence[Record],
    change: Callable[[float], float] = lambda same: same,
) -> Interval:
    """A function of our loss over theirs, seed by seed."""
    return bootstrap_median([change(ratio(a.loss, b.loss)) for a, b in zip(ours, theirs, strict=True)])


def ratio(ours: float, theirs: float) -> float:
    """Infinite where ours is, whatever theirs is."""
    return ours / theirs if math.isfinite(ours) else math.inf


def _mistakes(plan: Plan, cell: Cell, records: Records, ours: Sequence[Record]) -> dict[str, Interval]:
    found = {}
    for factor in plan.misset:
        for what, setting in (
            ("lr", {"lr": DEFAULT_LR * factor}),
            ("initial radius", {"radius": DEFAULT_RADIUS * factor}),
        ):
            runs = [records[Trial(cell, OURS, seed, **setting)] for seed in plan.seeds]
            found[f"{what} x {factor:g}"] = _pairs(runs, ours)
    return found


def _interval(values: Sequence[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return bootstrap_median(known) if len(known) == len(values) else None


def _less_error(ours: Sequence[Record], theirs: Sequence[Record]) -> Interval | None:
    """One minus the ratio of the quantisation errors, in pairs; None unless all were measured."""
    return _interval(
        [
            None if a.error is None or b.error is None else 1 - ratio(a.error, b.error)
            for a, b in zip(ours, theirs, strict=True)
        ]
    )


def share_to_reach(losses: Mapping[float, float], target: float) -> float:
    """The least share of the steps whose run ends at `target` or below, between two shares by interpolation.

    `losses`: final loss by share, each run with a schedule of its own. Losses are taken as non-increasing:
    more steps that end higher are noise. Infinite where no run gets there; the least share where all do.
    """
    known, lowest = [], math.inf
    for share in sorted(losses):
        lowest = min(lowest, losses[share])
        known.append((share, lowest))
    before: tuple[float, float] | None = None
    for share, loss in known:
        if loss <= target:
            if before is None or not math.isfinite(before[1]) or before[1] == loss:
                return share
            part = (before[1] - target) / (before[1] - loss)
            return math.exp(math.log(before[0]) + part * (math.log(share) - math.log(before[0])))
        before = share, loss
    return math.inf
