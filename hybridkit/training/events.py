"""What a training run tells whoever watches it; the command line renders these, the loop prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Started:
    """The run exists and its network is built; `step` > 0 where it goes on from a checkpoint."""

    path: Path
    step: int
    total_steps: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """One optimisation step was taken; `values` is what was logged."""

    step: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch (from 1) ended: mean loss, and learning rate and radius of its last step (None: no radius)."""

    epoch: int
    loss: float
    lr: float
    trust_radius: float | None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The network was measured on the validation data."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint is on the disk."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should know; training goes on."""

    message: str


Event = Started | StepDone | EpochDone | Evaluated | Saved | Warned
Listener = Callable[[Event], None]
