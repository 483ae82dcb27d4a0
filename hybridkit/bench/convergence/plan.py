"""Which trials there are, in the order in which they become possible."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hybridkit.bench.convergence.extras import EXTRAS, Extra
from hybridkit.bench.convergence.methods import (
    BASELINE,
    COSINE,
    METHODS,
    MUON,
    OURS,
    OURS_AND_ABLATIONS,
    RIVALS,
    TUNED,
    Method,
)
from hybridkit.bench.convergence.settings import CORE, Setting, settings
from hybridkit.bench.convergence.trials import Record, Trial
from hybridkit.bench.overhead import OverheadSpec
from hybridkit.errors import UsageError

TUNING_SEEDS: Final = 2
SHARES: Final = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
MISSET: Final = (0.1, 10.0)
ROUNDS: Final = 16
STEPS, BATCH = 600, 32  # of a task that is not among TASKS
DEFAULT_LR: Final = 1e-3
DEFAULT_RADIUS: Final = 0.01

Rates = Mapping[tuple[Setting, str], float]  # the learning rate of a rival in a setting


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings, seeds, and how much is done in each setting.

    shares: of the steps, for shorter runs. misset: factors on the learning rate and on the first radius.
    grid: learning rates of a rival at most, from the middle; None: all. among: the rivals; none: all.
    rounds: of timing the overhead; 0: not at all. extras: further settings, for the best methods alone.
    custom: methods that somebody brought along: rivals, tuned and reported as all of them are.
    """

    settings: Sequence[Setting]
    seeds: Sequence[int]
    shares: Sequence[float] = SHARES
    misset: Sequence[float] = MISSET
    grid: int | None = None
    among: Sequence[str] = ()
    ablations: bool = True
    rounds: int = ROUNDS
    extras: Sequence[Extra] = ()
    custom: Sequence[Method] = ()
    unsuitable: Mapping[Setting, Sequence[str]] = field(default_factory=dict)  # rivals to leave out

    def method(self, name: str) -> Method:
        """One of the built-in methods, or of `custom`."""
        return next((method for method in self.custom if method.name == name), None) or METHODS[name]

    def trial(self, setting: Setting, method: str, seed: int, lr: float | None = None, **more: Any) -> Trial:
        """A trial of the method of this name."""
        return Trial(setting, self.method(method), seed, lr, **more)

    def rivals(self, setting: Setting) -> list[str]:
        """Those that are for this setting, and everybody's own."""
        names = (*(self.among or RIVALS), *(method.name for method in self.custom))
        suit = [name for name in names if self.method(name).suits(setting)]
        return [name for name in suit if name not in self.unsuitable.get(setting, ())]

    def own(self, setting: Setting) -> list[str]:
        """Our method and its ablations, those that make sense in this setting."""
        return [
            name
            for name, method in OURS_AND_ABLATIONS.items()
            if name == OURS or (self.ablations and method.suits(setting))
        ]

    def rates(self, rival: str) -> tuple[float, ...]:
        """The learning rates tried for a rival."""
        grid = self.method(rival).grid
        most = min(self.grid or len(grid), len(grid))
        skip = (len(grid) - most) // 2
        return grid[skip : skip + most]

    def tuning(self) -> list[Trial]:
        """The trials that choose each rival's learning rate."""
        return [
            self.trial(setting, rival, seed, lr)
            for setting in self.settings
            for rival in self.rivals(setting)
            for lr in self.rates(rival)
            for seed in self.seeds[:TUNING_SEEDS]
        ]

    def ours(self) -> list[Trial]:
        """The baseline, our method and its ablations."""
        return [
            self.trial(setting, method, seed)
            for setting in self.settings
            for seed in self.seeds
            for method in (BASELINE, *self.own(setting))
        ]

    def horizons(self) -> list[Trial]:
        """Our method on shorter runs, each with the whole of its schedule."""
        return [
            self.trial(setting, OURS, seed, share=share)
            for setting in self.settings
            for share in self.shares
            for seed in self.seeds
        ]

    def mistakes(self) -> list[Trial]:
        """Our method with a learning rate or a first radius that somebody got wrong."""
        return [
            self.trial(setting, OURS, seed, **wrong)
            for setting in self.settings
            for seed in self.seeds
            for factor in self.misset
            for wrong in ({"lr": DEFAULT_LR * factor}, {"radius": DEFAULT_RADIUS * factor})
        ]

    def heat(self) -> list[Trial]:
        """One seed of every pair of wrong settings."""
        factors = (1.0, *self.misset)
        return [
            heat_trial(setting, self.seeds[0], lr, radius)
            for setting in self.settings
            for lr in factors
            for radius in factors
        ]

    def tuned(self, rates: Rates) -> list[Trial]:
        """Each rival at its best learning rate."""
        return [
            self.trial(setting, rival, seed, rates[setting, rival])
            for setting in self.settings
            for rival in self.rivals(setting)
            for seed in self.seeds
        ]

    def further(self, best: Mapping[Setting, Sequence[str]], rates: Rates) -> list[dict[str, list[Trial]]]:
        """The trials of each extra, by method: ours, the baseline, everybody's own and the `best` rivals."""
        found = []
        for extra in self.extras:
            own = [m.name for m in self.custom if m.suits(extra.like) and m.suits(extra.setting)]
            rivals = [*best[extra.like], *own]
            rate = {name: rates[extra.like, name] for name in rivals}
            found.append(
                {
                    name: [self.trial(extra.setting, name, seed, rate.get(name)) for seed in self.seeds]
                    for name in (OURS, *extra.also, BASELINE, *rivals)
                }
            )
        return found

    def overheads(self) -> list[OverheadSpec]:
        """What is timed."""
        return [OverheadSpec(setting, self.rounds) for setting in self.settings if self.rounds]


def heat_trial(setting: Setting, seed: int, lr: float, radius: float) -> Trial:
    """Our method with both settings wrong by these factors; 1 is the default."""
    return Trial(
        setting,
        METHODS[OURS],
        seed,
        None if lr == 1 else DEFAULT_LR * lr,
        radius=None if radius == 1 else DEFAULT_RADIUS * radius,
    )


def best_rates(plan: Plan, records: Mapping[Trial, Record]) -> dict[tuple[Setting, str], float]:
    """The rate of each rival whose median validation loss over the tuning seeds is the least."""
    return {
        (setting, rival): min(
            plan.rates(rival),
            key=lambda lr: statistics.median(
                records[plan.trial(setting, rival, seed, lr)].loss for seed in plan.seeds[:TUNING_SEEDS]
            ),
        )
        for setting in plan.settings
        for rival in plan.rivals(setting)
    }


def core(
    seeds: int = 5,
    task: str | None = None,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    full: bool = False,
    custom: Sequence[Method] = (),
) -> Plan:
    """Every core task in full precision and ternary; or `task` alone, which may be one of the user's.

    steps, batch_size: of a task of the user's; a core task has its own. `full` adds the extras whose core
    settings are among them. Raises UsageError for what does not fit together.
    """
    chosen: Sequence[Setting] = [setting for setting in CORE if task in (None, setting.task)]
    if not chosen and task:
        chosen = settings([(task, steps or STEPS, batch_size or BATCH)], ("fp32", "ternary"))
    elif steps or batch_size:
        raise UsageError("core tasks have steps and batches of their own: drop --steps, --batch-size")
    extras = [extra for extra in EXTRAS if full and extra.like in chosen]
    if full and not extras:
        raise UsageError(f"--full has nothing to add to {task}; drop one of them")
    return Plan(chosen, range(seeds), extras=extras, custom=custom)


def quick(plan: Plan) -> Plan:
    """The same with two seeds and a coarse grid: to see that it works, not to conclude anything."""
    seeds = plan.seeds[:2]
    return dataclasses.replace(plan, seeds=seeds, shares=(0.5,), misset=(10.0,), grid=1, rounds=4)


def small(task: str, steps: int, batch_size: int, seeds: int, grid: int) -> Plan:
    """A few rivals on one task, as a part of the whole bench: minutes."""
    return Plan(
        settings([(task, steps, batch_size)], ("ternary", "fp32")),
        range(seeds),
        shares=(0.3, 0.5, 0.65, 0.8),
        misset=(),
        grid=grid,
        among=(TUNED, COSINE, MUON),
        ablations=False,
        rounds=0,
    )
