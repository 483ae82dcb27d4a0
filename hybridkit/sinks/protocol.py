"""The protocol of metric sinks, and how a record of the log becomes named numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """The run that a sink is opened for.

    `folder` belongs to this sink alone, exists, and is the same for every process of the run. `step` counts
    the steps taken when this process begins: 0, or those of the checkpoint that it goes on from. `logged` is
    the last step that earlier processes logged: where it is beyond `step`, what they logged after `step` is
    superseded.
    """

    name: str
    folder: Path
    step: int = 0
    logged: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


class MetricSink(Protocol):
    """Takes every record of a run's log, besides `metrics.jsonl`, which holds them all and is what is read.

    The library that it needs is imported by its constructor, which raises UsageError where it is missing:
    that ends the command before the run begins. Afterwards a sink that raises is warned about once and gets
    nothing more from this process; the run goes on.
    """

    def open(self, run: RunInfo) -> int:
        """Begin, or go on. Returns the step up to which it has the log, 0..run.step; 0: it has nothing.

        It drops or leaves behind what it has of later steps. Records after the returned step, up to
        `run.step`, are written again before anything new.
        """
        ...

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Take one record; `event` is one of `hybridkit.training.metrics.EVENTS`, steps never decrease.

        A value is a number, a list of numbers, None where it was not finite, or text (`scalars`, `texts`).
        """
        ...

    def close(self, *, ended: bool) -> None:
        """Write what is pending. `ended`: whether the run took its last step, or will be resumed."""
        ...


def scalars(event: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record as `event/name`, those of a list as `event/name/0`, `event/name/1`, ..."""
    return {f"{event}/{name}": float(value) for name, value in _leaves(values) if _is_number(value)}


def texts(event: str, values: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a record as `event/name`."""
    return {f"{event}/{name}": value for name, value in values.items() if isinstance(value, str)}


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, list | tuple):
            yield from ((f"{name}/{i}", item) for i, item in enumerate(value))
        else:
            yield name, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
