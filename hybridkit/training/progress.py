"""The counters of a run: plain numbers, saved and restored exactly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Progress:
    """How far a run is, and the sums that its summary is made of."""

    step: int = 0
    epoch_loss: float = 0.0  # sum over the epoch so far
    epoch_steps: int = 0
    last_loss: float = math.nan
    multiplier_sum: float = 0.0
    active_steps: int = 0
    learning_rate: float = 0.0  # of the last step
    trust_radius: float | None = None
    best_value: float = math.inf  # least validation loss
    best_step: int = 0

    def count(self, values: Mapping[str, Any], *, first_of_epoch: bool) -> None:
        """Add one step."""
        if first_of_epoch:
            self.epoch_loss, self.epoch_steps = 0.0, 0
        self.step += 1
        self.epoch_steps += 1
        self.epoch_loss += values["loss"]
        self.last_loss = values["loss"]
        self.multiplier_sum += values.get("lr_multiplier", 1.0)
        self.active_steps += bool(values.get("constraint_active", False))
        self.learning_rate = values["learning_rate"]
        self.trust_radius = values.get("trust_radius")

    def improve(self, value: float) -> bool:
        """Note a validation loss; whether it is the least so far."""
        if value < self.best_value:
            self.best_value, self.best_step = value, self.step
            return True
        return False

    @property
    def mean_epoch_loss(self) -> float:
        """Mean loss of the epoch so far."""
        return self.epoch_loss / max(self.epoch_steps, 1)

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)
