"""What `--full` adds: larger, coarser, distilled and long-tailed cells, for the best methods of the core.

Nothing is tuned there: a rival keeps the learning rate that it was given in the core cell most like it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hybridkit.bench.arena.cells import CORE, Cell
from hybridkit.bench.arena.methods import BALANCED, BASELINE, OURS
from hybridkit.bench.arena.trials import Trial

if TYPE_CHECKING:
    from hybridkit.bench.arena.findings import CellFindings

BEST: Final = 2
TEACHER: Final = "hybridkit.bench.arena.teacher:fashion_mnist"
LONG_TAILED: Final = "hybridkit.bench.arena.longtail:fashion_mnist_long_tailed"


@dataclass(frozen=True, slots=True)
class Extra:
    """A cell of `--full`. like: the core cell whose learning rates hold. also: methods of ours to compare."""

    cell: Cell
    like: Cell
    also: tuple[str, ...] = ()

    def trials(
        self, rivals: Sequence[str], seeds: Sequence[int], rates: Mapping[tuple[Cell, str], float]
    ) -> dict[str, list[Trial]]:
        """Ours, the baseline and `rivals`, by method; one trial for each seed."""
        rate = {name: rates[self.like, name] for name in rivals}
        return {
            name: [Trial(self.cell, name, seed, rate.get(name)) for seed in seeds]
            for name in (OURS, *self.also, BASELINE, *rivals)
        }


def _extras() -> Iterator[Extra]:
    core = {(cell.task, cell.precision): cell for cell in CORE}
    for (task, precision), like in core.items():
        steps, batch = like.steps, like.batch_size
        if task == "text":
            yield Extra(Cell(task, precision, steps, batch, model="transformer-3m"), like)
        if task == "fashion-mnist":
            yield Extra(Cell(LONG_TAILED, precision, steps, batch), like, (BALANCED,))
        if precision == "ternary":
            yield Extra(Cell(task, "1-bit", steps, batch), like)
        if (task, precision) == ("fashion-mnist", "ternary"):
            yield Extra(Cell(task, precision, steps, batch, teacher=TEACHER), like)


EXTRAS: Final = tuple(_extras())


def best_rivals(found: Sequence[CellFindings], cell: Cell) -> list[str]:
    """The BEST rivals by the median, over all cells, of their loss over ours; of those that run in `cell`."""
    ratios: dict[str, list[float]] = {}
    here: set[str] = set()
    for each in found:
        rivals = [s for s in each.standings if s.spread]
        for s in rivals:
            ratios.setdefault(s.method, []).append(s.ratio.median)
        if each.cell == cell:
            here = {s.method for s in rivals}
    return sorted(here, key=lambda name: statistics.median(ratios[name]))[:BEST]
