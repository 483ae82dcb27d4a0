"""Which trials there are, in the order in which they become possible."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from hybridkit.bench.arena.cells import CORE, Cell, cells
from hybridkit.bench.arena.extras import EXTRAS, Extra
from hybridkit.bench.arena.methods import BASELINE, COSINE, MUON, OURS, OURS_AND_ABLATIONS, RIVALS, TUNED
from hybridkit.bench.arena.trials import Record, Trial
from hybridkit.bench.overhead import OverheadSpec
from hybridkit.errors import UsageError

TUNING_SEEDS: Final = 2
SHARES: Final = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
MISSET: Final = (0.1, 10.0)
ROUNDS: Final = 16
STEPS, BATCH = 600, 32  # of a task that the arena does not know
DEFAULT_LR: Final = 1e-3
DEFAULT_RADIUS: Final = 0.01

Rates = Mapping[tuple[Cell, str], float]  # the learning rate of a rival in a cell


@dataclass(frozen=True, slots=True)
class Plan:
    """Cells, seeds, and how much is done in each cell.

    shares: of the steps, for shorter runs. misset: factors on the learning rate and on the first radius.
    grid: learning rates of a rival at most, from the middle. among: the rivals; none: all. rounds: of timing
    the overhead; 0: not at all. extras: further cells, for the best methods alone.
    """

    cells: Sequence[Cell]
    seeds: Sequence[int]
    shares: Sequence[float] = SHARES
    misset: Sequence[float] = MISSET
    grid: int = 5
    among: Sequence[str] = ()
    ablations: bool = True
    rounds: int = ROUNDS
    extras: Sequence[Extra] = ()
    unsuitable: Mapping[Cell, Sequence[str]] = field(default_factory=dict)  # rivals to leave out

    def rivals(self, cell: Cell) -> list[str]:
        """Those that are for this cell."""
        suit = [name for name in self.among or RIVALS if RIVALS[name].suits(cell.task, cell.precision)]
        return [name for name in suit if name not in self.unsuitable.get(cell, ())]

    def own(self, cell: Cell) -> list[str]:
        """Our method and its ablations, those that make sense in this cell."""
        return [
            name
            for name, method in OURS_AND_ABLATIONS.items()
            if name == OURS or (self.ablations and method.suits(cell.task, cell.precision))
        ]

    def rates(self, rival: str) -> tuple[float, ...]:
        """The learning rates tried for a rival."""
        grid = RIVALS[rival].grid
        skip = (len(grid) - self.grid) // 2 if self.grid < len(grid) else 0
        return grid[skip : skip + self.grid]

    def tuning(self) -> list[Trial]:
        """The trials that choose each rival's learning rate."""
        return [
            Trial(cell, rival, seed, lr)
            for cell in self.cells
            for rival in self.rivals(cell)
            for lr in self.rates(rival)
            for seed in self.seeds[:TUNING_SEEDS]
        ]

    def ours(self) -> list[Trial]:
        """The baseline, our method and its ablations."""
        return [
            Trial(cell, method, seed)
            for cell in self.cells
            for seed in self.seeds
            for method in (BASELINE, *self.own(cell))
        ]

    def horizons(self) -> list[Trial]:
        """Our method on shorter runs, each with the whole of its schedule."""
        return [
            Trial(cell, OURS, seed, share=share)
            for cell in self.cells
            for share in self.shares
            for seed in self.seeds
        ]

    def mistakes(self) -> list[Trial]:
        """Our method with a learning rate or a first radius that somebody got wrong."""
        return [
            Trial(cell, OURS, seed, **wrong)
            for cell in self.cells
            for seed in self.seeds
            for factor in self.misset
            for wrong in ({"lr": DEFAULT_LR * factor}, {"radius": DEFAULT_RADIUS * factor})
        ]

    def heat(self) -> list[Trial]:
        """One seed of every pair of wrong settings."""
        factors = (1.0, *self.misset)
        return [
            heat_trial(cell, self.seeds[0], lr, radius)
            for cell in self.cells
            for lr in factors
            for radius in factors
        ]

    def tuned(self, rates: Rates) -> list[Trial]:
        """Each rival at its best learning rate."""
        return [
            Trial(cell, rival, seed, rates[cell, rival])
            for cell in self.cells
            for rival in self.rivals(cell)
            for seed in self.seeds
        ]

    def overheads(self) -> list[OverheadSpec]:
        """What is timed."""
        return [OverheadSpec(cell, self.rounds) for cell in self.cells if self.rounds]


def heat_trial(cell: Cell, seed: int, lr: float, radius: float) -> Trial:
    """Our method with both settings wrong by these factors; 1 is the default."""
    return Trial(
        cell,
        OURS,
        seed,
        None if lr == 1 else DEFAULT_LR * lr,
        radius=None if radius == 1 else DEFAULT_RADIUS * radius,
    )


def best_rates(plan: Plan, records: Mapping[Trial, Record]) -> dict[tuple[Cell, str], float]:
    """The rate of each rival whose median validation loss over the tuning seeds is the least."""
    return {
        (cell, rival): min(
            plan.rates(rival),
            key=lambda lr: statistics.median(
                records[Trial(cell, rival, seed, lr)].loss for seed in plan.seeds[:TUNING_SEEDS]
            ),
        )
        for cell in plan.cells
        for rival in plan.rivals(cell)
    }


def core(
    seeds: int = 5,
    task: str | None = None,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    full: bool = False,
) -> Plan:
    """Every core task in full precision and ternary; or `task` alone, which may be one of the user's.

    steps, batch_size: of a task of the user's; a core task has its own. `full` adds the extras whose core
    cells are among them. Raises UsageError for what does not fit together.
    """
    chosen: Sequence[Cell] = [cell for cell in CORE if task in (None, cell.task)]
    if not chosen and task:
        chosen = cells([(task, steps or STEPS, batch_size or BATCH)], ("fp32", "ternary"))
    elif steps or batch_size:
        raise UsageError("core tasks have steps and batches of their own: drop --steps, --batch-size")
    extras = [extra for extra in EXTRAS if full and extra.like in chosen]
    if full and not extras:
        raise UsageError(f"--full has nothing to add to {task}; drop one of them")
    return Plan(chosen, range(seeds), extras=extras)


def quick(plan: Plan) -> Plan:
    """The same with two seeds and a coarse grid: to see that it works, not to conclude anything."""
    seeds = plan.seeds[:2]
    return dataclasses.replace(plan, seeds=seeds, shares=(0.5,), misset=(10.0,), grid=1, rounds=4)


def small(task: str, steps: int, batch_size: int, seeds: int, grid: int) -> Plan:
    """A few rivals on one task, as a part of the whole bench: minutes."""
    return Plan(
        cells([(task, steps, batch_size)], ("ternary", "fp32")),
        range(seeds),
        shares=(0.3, 0.5, 0.65, 0.8),
        misset=(),
        grid=grid,
        among=(TUNED, COSINE, MUON),
        ablations=False,
        rounds=0,
    )
