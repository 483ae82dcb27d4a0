"""`hybridkit train --relative-step A,B,C`: one run for each, and which ended best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TextIO

from hybridkit.cli._shared import Settings
from hybridkit.errors import UsageError

if TYPE_CHECKING:
    from hybridkit.training.loop import TrainResult

SWEEP: Final = "sweep"
STEPS: Final = (0.06, 0.02, 0.006)  # the default, a third and a tenth of it
Results = list[tuple[float | None, "TrainResult"]]


def parse_steps(text: str | None) -> tuple[float | None, ...]:
    """The relative steps that a flag names; (None,) where it was not given.

    Raises UsageError for what is no positive number, and for one that is there twice.
    """
    if text is None:
        return (None,)
    if text == SWEEP:
        return STEPS
    try:
        steps = tuple(float(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if not steps or not all(0 < step < float("inf") for step in steps) or len(set(steps)) < len(steps):
        raise UsageError(f"--relative-step {text!r:.60}: a positive number, several with commas, or {SWEEP}")
    return steps


def with_step(options: Settings, step: float | None) -> Settings:
    """Options of strategies with this relative step."""
    if step is None:
        return options
    return {**options, "lr_controller": {**options.get("lr_controller", {}), "relative_step": step}}


def best_of(results: Results) -> TrainResult:
    """The run of the least validation loss."""
    return min(results, key=lambda one: one[1].validation["loss"])[1]


def print_sweep(results: Results, out: TextIO) -> None:
    """A line for each run, where there were several."""
    if len(results) == 1:
        return
    best = best_of(results)
    print("Relative step  Validation loss  Run", file=out)
    for step, result in results:
        mark = "  <- best" if result is best else ""
        print(f"{step:<13g}  {result.validation['loss']:<15.6f}  {result.run.path}{mark}", file=out)


def described(results: Results) -> list[dict[str, Any]]:
    """The same as JSON."""
    return [
        {"relative_step": step, "validation": result.validation, "run": str(result.run.path)}
        for step, result in results
    ]
