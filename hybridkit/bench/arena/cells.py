"""What is trained, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hybridkit.bench.runs import QUANTISED, Precision


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A task, with its first model, in one precision."""

    task: str
    precision: Precision
    steps: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.task.rpartition(':')[2]}, {self.precision}"

    def flags(self, steps: int) -> dict[str, object]:
        """What it means to `training.config.resolve`."""
        return {
            "task": self.task,
            "max_steps": steps,
            "batch_size": self.batch_size,
            **QUANTISED[self.precision],
        }


TASKS: Final = (("digits", 400, 32), ("fashion-mnist", 400, 64), ("text", 300, 16))


def cells(tasks: Sequence[tuple[str, int, int]], precisions: Sequence[Precision]) -> list[Cell]:
    """Every task in every precision."""
    return [Cell(task, precision, steps, batch) for task, steps, batch in tasks for precision in precisions]


CORE: Final = tuple(cells(TASKS, ("fp32", "ternary")))
