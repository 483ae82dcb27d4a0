"""What is trained, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Precision = Literal["fp32", "ternary", "3:4-sparse", "1-bit"]
QUANTISED: Final[dict[Precision, dict[str, Any]]] = {
    "fp32": {},
    "ternary": {"ternary": True, "qat": True},
    "3:4-sparse": {"ternary": True, "qat": True, "quantizer": "ternary-sparse"},
    "1-bit": {"qat": True},
}


@dataclass(frozen=True, slots=True)
class Setting:
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


def settings(tasks: Sequence[tuple[str, int, int]], precisions: Sequence[Precision]) -> list[Setting]:
    """Every task in every precision."""
    return [
        Setting(task, precision, steps, batch) for task, steps, batch in tasks for precision in precisions
    ]


CORE: Final = tuple(settings(TASKS, ("fp32", "ternary")))
