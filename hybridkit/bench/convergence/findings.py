"""What the trials say: ratios in pairs of equal seed, medians with 95 % bootstrap intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from hybridkit.bench.convergence.methods import BASELINE, OURS
from hybridkit.bench.convergence.plan import DEFAULT_LR, DEFAULT_RADIUS, TUNING_SEEDS, Plan, Rates
from hybridkit.bench.convergence.settings import Setting
from hybridkit.bench.convergence.trials import Record, Trial
from hybridkit.bench.overhead import OverheadResult
from hybridkit.bench.statistics import Interval, Number, bootstrap_median


@dataclass(frozen=True, slots=True)
class Standing:
    """One method in one setting. lr None: the default. ratio: its final loss over our method's, in pairs.

    error: of quantisation, against its full-precision counterpart, where that was measured. custom: somebody
    brought the method along.
    """

    method: str
    lr: float | None
    loss: Interval
    ratio: Interval
    metric: Interval
    seconds: float
    error: Interval | None = None
    custom: bool = False
    spread: dict[float, Number] = field(default_factory=dict)  # median loss by learning rate


@dataclass(frozen=True, slots=True)
class Ranking:
    """The methods that were run in one setting."""

    setting: Setting
    standings: list[Standing]


@dataclass(frozen=True, slots=True)
class Findings(Ranking):
    """Everything about one setting of the plan.

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
BEST: Final = 2  # rivals that go on in the settings of --full


def findings(
    plan: Plan, records: Records, rates: Rates, overheads: Mapping[Setting, OverheadResult] | None = None
) -> list[Findings]:
    """One for each setting of the plan, whose trials must all be there."""
    return [
        _of_setting(plan, setting, records, rates, (overheads or {}).get(setting))
        for setting in plan.settings
    ]


def rankings(settings: Sequence[Mapping[str, Sequence[Trial]]], records: Records) -> list[Ranking]:
    """One for each setting that has no rival tuned: its trials by method, ours among them."""
    found = []
    for trials in settings:
        runs = {method: [records[trial] for trial in own] for method, own in trials.items()}
        first = {method: own[0] for method, own in trials.items()}
        standings = [
            _standing(
                name,
                DEFAULT_LR if name == BASELINE else first[name].lr,
                own,
                runs[OURS],
                custom=first[name].method.custom,
            )
            for name, own in runs.items()
        ]
        found.append(Ranking(first[OURS].setting, standings))
    return found


def _of_setting(
    plan: Plan, setting: Setting, records: Records, rates: Rates, overhead: OverheadResult | None
) -> Findings:
    def of(method: str, lr: float | None = None, **more: float) -> list[Record]:
        return [records[plan.trial(setting, method, seed, lr, **more)] for seed in plan.seeds]

    ours, baseline = of(OURS), of(BASELINE)
    rivals = {name: of(name, rates[setting, name]) for name in plan.rivals(setting)}
    others = {BASELINE: baseline, **rivals}
    standings = [_standing(name, None, of(name), ours) for name in plan.own(setting)]
    standings.append(_standing(BASELINE, DEFAULT_LR, baseline, ours))
    for name, runs in rivals.items():
        spread = {
            lr: statistics.median(
                records[plan.trial(setting, name, s, lr)].loss for s in plan.seeds[:TUNING_SEEDS]
            )
            for lr in plan.rates(name)
        }
        custom = plan.method(name).custom
        standings.append(_standing(name, rates[setting, name], runs, ours, spread, custom=custom))
    shares = {share: of(OURS, share=share) for share in plan.shares} | {1.0: ours}
    needed = {
        name: [
            share_to_reach({share: runs[i].loss for share, runs in shares.items()}, theirs[i].loss)
            for i in range(len(plan.seeds))
        ]
        for name, theirs in others.items()
    }
    best = min(rivals, key=lambda name: statistics.median(r.loss for r in rivals[name]))
    return Findings(
        setting=setting,
        standings=standings,
        steps={name: bootstrap_median(values) for name, values in needed.items()},
        seconds={
            name: bootstrap_median(
                [
                    share * mine.seconds / theirs.seconds
                    for share, mine, theirs in zip(values, ours, others[name], strict=True)
                ]
            )
            for name, values in needed.items()
        },
        reached={name: sum(map(math.isfinite, values)) for name, values in needed.items()},
        lower_loss=_pairs(ours, baseline, lambda r: 1 - r),
        best=best,
        against_best=_pairs(ours, rivals[best]),
        mistakes=_mistakes(plan, setting, records, ours),
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
    *,
    custom: bool = False,
) -> Standing:
    return Standing(
        method=name,
        lr=lr,
        loss=bootstrap_median([r.loss for r in runs]),
        ratio=_pairs(runs, ours),
        metric=bootstrap_median([-math.inf if math.isnan(r.metric) else r.metric for r in runs]),
        seconds=statistics.median(r.seconds for r in runs),
        error=_interval([r.error for r in runs]),
        custom=custom,
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


def _mistakes(plan: Plan, setting: Setting, records: Records, ours: Sequence[Record]) -> dict[str, Interval]:
    found = {}
    for factor in plan.misset:
        for what, wrong in (
            ("lr", {"lr": DEFAULT_LR * factor}),
            ("initial radius", {"radius": DEFAULT_RADIUS * factor}),
        ):
            runs = [records[plan.trial(setting, OURS, seed, **wrong)] for seed in plan.seeds]
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


def best_rivals(found: Sequence[Findings], setting: Setting) -> list[str]:
    """The BEST of the built-in rivals of `setting`, by the median over all settings of loss over ours."""
    ratios: dict[str, list[float]] = {}
    here: set[str] = set()
    for each in found:
        rivals = [s for s in each.standings if s.spread and not s.custom]
        for s in rivals:
            ratios.setdefault(s.method, []).append(s.ratio.median)
        if each.setting == setting:
            here = {s.method for s in rivals}
    return sorted(here, key=lambda name: statistics.median(ratios[name]))[:BEST]


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
