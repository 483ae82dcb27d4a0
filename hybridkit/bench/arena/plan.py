"""Which trials there are, in the order in which they become possible."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hybridkit.bench.arena.cells import CORE, TASKS, Cell, cells
from hybridkit.bench.arena.methods import BASELINE, OURS, OURS_AND_ABLATIONS, RIVALS
from hybridkit.bench.arena.trials import Record, Trial

TUNING_SEEDS: Final = 2
SHARES: Final = (0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
MISSET: Final = (0.1, 0.3, 3.0, 10.0)
STEPS, BATCH = 600, 32  # of a task that the arena does not know
DEFAULT_LR: Final = 1e-3
DEFAULT_RADIUS: Final = 0.01


@dataclass(frozen=True, slots=True)
class Plan:
    """Cells, seeds, and whether everything is to be done or a try-out."""

    cells: Sequence[Cell]
    seeds: Sequence[int]
    shares: Sequence[float] = SHARES
    misset: Sequence[float] = MISSET
    grid: int = 5  # learning rates of a rival at most, from the middle

    def rivals(self, cell: Cell) -> list[str]:
        """Those that are for this cell."""
        return [name for name, m in RIVALS.items() if not m.only or cell.task in m.only]

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
            for method in (BASELINE, *OURS_AND_ABLATIONS)
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

    def tuned(self, rates: Mapping[tuple[Cell, str], float]) -> list[Trial]:
        """Each rival at its best learning rate."""
        return [
            Trial(cell, rival, seed, rates[cell, rival])
            for cell in self.cells
            for rival in self.rivals(cell)
            for seed in self.seeds
        ]


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


def core(seeds: int = 5, tasks: Sequence[str] = ()) -> Plan:
    """Every core task in full precision and ternary; or the tasks that are named, also ones of the user's."""
    known = {cell.task for cell in CORE}
    strangers = [(task, STEPS, BATCH) for task in tasks if task not in known]
    chosen = [cell for cell in CORE if not tasks or cell.task in tasks]
    return Plan([*chosen, *cells(strangers, ("fp32", "ternary"))], range(seeds))


def quick() -> Plan:
    """Digits alone, two seeds, a coarse grid: to see that it works, not to conclude anything."""
    return Plan(cells(TASKS[:1], ("fp32", "ternary")), range(2), shares=(0.5,), misset=(0.1, 10.0), grid=1)
