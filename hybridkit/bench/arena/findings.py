"""What the trials say: ratios in pairs of equal seed, medians with 95 % bootstrap intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hybridkit.bench.arena.cells import Cell
from hybridkit.bench.arena.methods import BASELINE, OURS, OURS_AND_ABLATIONS
from hybridkit.bench.arena.plan import DEFAULT_LR, DEFAULT_RADIUS, Plan
from hybridkit.bench.arena.trials import Record, Trial
from hybridkit.bench.statistics import Interval, bootstrap_median


@dataclass(frozen=True, slots=True)
class Standing:
    """One method in one cell. lr None: the default. ratio: its final loss over our method's, in pairs."""

    method: str
    lr: float | None
    loss: Interval
    ratio: Interval
    metric: Interval
    seconds: float
    spread: dict[float, float] = field(default_factory=dict)  # median loss at each rate of its grid


@dataclass(frozen=True, slots=True)
class CellFindings:
    """Everything about one cell.

    steps, seconds: of ours to a rival's final loss over the rival's own, by rival; infinite where never
    reached. lower_loss: 1 - ours / baseline. best: the best tuned rival; against_best: ours / its loss.
    mistakes: final loss over that of the default, by what was set wrong.
    """

    cell: Cell
    standings: list[Standing]
    steps: dict[str, Interval]
    seconds: dict[str, Interval]
    lower_loss: Interval
    best: str
    against_best: Interval
    mistakes: dict[str, Interval]
    active: Interval | None
    horizons: dict[float, Interval]


Records = Mapping[Trial, Record]


def findings(plan: Plan, records: Records, rates: Mapping[tuple[Cell, str], float]) -> list[CellFindings]:
    """One for each cell of the plan, whose trials must all be there."""
    return [_of_cell(plan, cell, records, rates) for cell in plan.cells]


def _of_cell(
    plan: Plan, cell: Cell, records: Records, rates: Mapping[tuple[Cell, str], float]
) -> CellFindings:
    def of(method: str, lr: float | None = None) -> list[Record]:
        return [records[Trial(cell, method, seed, lr)] for seed in plan.seeds]

    ours = of(OURS)
    rivals = {name: of(name, rates[cell, name]) for name in plan.rivals(cell)}
    others = {BASELINE: of(BASELINE), **rivals}
    standings = [_standing(OURS, None, ours, ours)]
    standings += [_standing(name, None, of(name), ours) for name in OURS_AND_ABLATIONS if name != OURS]
    standings.append(_standing(BASELINE, DEFAULT_LR, others[BASELINE], ours))
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
        lower_loss=_pairs(ours, others[BASELINE], lambda a, b: 1 - a / b),
        best=best,
        against_best=_pairs(ours, rivals[best], lambda a, b: a / b),
        mistakes=_mistakes(plan, cell, records, ours),
        active=_interval([r.active for r in ours]),
        horizons={share: bootstrap_median([r.loss for r in runs]) for share, runs in sorted(shares.items())},
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
        ratio=_pairs(runs, ours, lambda a, b: a / b),
        metric=bootstrap_median([-math.inf if math.isnan(r.metric) else r.metric for r in runs]),
        seconds=statistics.median(r.seconds for r in runs),
        spread=spread or {},
    )


def _pairs(
    ours: Sequence[Record], theirs: Sequence[Record], compare: Callable[[float, float], float]
) -> Interval:
    return bootstrap_median([compare(a.loss, b.loss) for a, b in zip(ours, theirs, strict=True)])


def _mistakes(plan: Plan, cell: Cell, records: Records, ours: Sequence[Record]) -> dict[str, Interval]:
    found = {}
    for factor in plan.misset:
        for what, setting in (
            ("lr", {"lr": DEFAULT_LR * factor}),
            ("initial radius", {"radius": DEFAULT_RADIUS * factor}),
        ):
            runs = [records[Trial(cell, OURS, seed, **setting)] for seed in plan.seeds]
            found[f"{what} x {factor:g}"] = _pairs(runs, ours, lambda a, b: a / b)
    return found


def _interval(values: Sequence[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return bootstrap_median(known) if len(known) == len(values) else None


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
