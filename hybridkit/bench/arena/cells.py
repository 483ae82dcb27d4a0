"""What is trained, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hybridkit.bench.runs import QUANTISED, Precision


@dataclass(frozen=True, slots=True)
class Cell:
    """A task in one precision. model: None is the task's first. teacher: module:attr to distil from."""

    task: str
    precision: Precision
    steps: int
    batch_size: int
    model: str | None = None
    teacher: str | None = None

    def __str__(self) -> str:
        name = self.task.rpartition(":")[2].replace("_", "-")
        model = f" ({self.model})" if self.model else ""
        return f"{name}{model}{' with a teacher' if self.teacher else ''}, {self.precision}"

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that task and teacher name, where they are no registered names."""
        return tuple(spec.partition(":")[0] for spec in (self.task, self.teacher) if spec and ":" in spec)

    def flags(self, steps: int) -> dict[str, object]:
        """What it means to `training.config.resolve`."""
        return {
            "task": self.task,
            "model": self.model,
            "teacher": self.teacher,
            "max_steps": steps,
            "batch_size": self.batch_size,
            **QUANTISED[self.precision],
        }


TASKS: Final = (("digits", 400, 32), ("fashion-mnist", 400, 64), ("text", 200, 16))


def cells(tasks: Sequence[tuple[str, int, int]], precisions: Sequence[Precision]) -> list[Cell]:
    """Every task in every precision."""
    return [Cell(task, precision, steps, batch) for task, steps, batch in tasks for precision in precisions]


CORE: Final = tuple(cells(TASKS, ("fp32", "ternary")))
