"""The counters of a run: plain numbers, saved and restored exactly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le
from pydantic import AllowInfNan, ConfigDict, Strict

Count = Annotated[int, Strict(), Ge(0), Le(2**63 - 1)]
Number = Annotated[float, Strict(), AllowInfNan(False)]


@dataclass(slots=True)
class Progress:
    """How far a run is, and the sums that its summary is made of."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    step: Count = 0
    epoch_loss: Number = 0.0  # sum over the epoch so far
    epoch_steps: Count = 0
    last_loss: Annotated[float, Strict()] = math.nan
    multiplier_sum: Number = 0.0
    active_steps: Count = 0
    learning_rate: Number = 0.0  # of the last step
    trust_radius: Number | None = None
    best_value: Annotated[float, Strict()] = math.inf  # least validation loss
    best_step: Count = 0

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
