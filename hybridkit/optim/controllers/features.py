"""Scale-free features of the training state: what the auxiliary network sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hybridkit.errors import UsageError
from hybridkit.optim.protocol import TrainingState

FEATURES = ("loss", "gradient", "cluster", "trend", "variation", "progress")
_RATE = 0.05
_TINY = 1e-30
_GOLDEN = (math.sqrt(5) - 1) / 2


def relative_difference(a: float, b: float) -> float:
    """2 (a - b) / (|a| + |b|), in [-2, 2]: close to log(a / b), and defined for zeros and all signs."""
    return 2 * (a - b) / (abs(a) + abs(b) + _TINY)


class Features:
    """Six numbers of order 1, the same whatever the loss and the gradient are multiplied by.

    | feature | value |
    |---|---|
    | loss | relative difference from its running mean |
    | gradient | relative difference of its norm from its running mean |
    | cluster | data cluster on a fixed scale from -1 to 1; 0 for a mixed batch |
    | trend | `loss_trend` over the loss's running standard deviation |
    | variation | standard deviation of the gradient's norm over the norm |
    | progress | from -1 at the start to 1 at the end; -1 where the length is unknown |

    Running means move by 5 % per step. Everything is clipped to [-3, 3].
    """

    def __init__(self) -> None:
        self.loss: float | None = None
        self.loss_square = 0.0  # running mean of (loss - its mean)^2
        self.gradients: list[float] = []  # running mean of the whole gradient's norm, then of each cluster's

    def rows(self, state: TrainingState) -> list[list[float]]:
        """Take in `state`; six features per row, the first row for the whole gradient.

        There is a row per parameter cluster where there are at least two. Raises UsageError where the loss is
        unknown.
        """
        loss = state.current_loss
        if not math.isfinite(loss):
            raise UsageError(
                "aux-nn learns from the loss; call optimizer.observe(loss) before optimizer.step()"
            )
        each = state.parameter_gradients if len(state.parameter_gradients) > 1 else ()
        gradients = [state.gradient_magnitude, *each]
        if self.loss is None or len(self.gradients) != len(gradients):
            self.loss, self.gradients = loss, list(gradients)
        noise = math.sqrt(self.loss_square) + _TINY
        deviation = math.sqrt(state.gradient_variance) / (state.gradient_magnitude + _TINY)
        cluster = 0.0 if state.cluster_id < 0 else 2 * ((state.cluster_id + 1) * _GOLDEN % 1) - 1
        shared = (cluster, state.loss_trend / noise, deviation, 2 * state.progress - 1)
        first = relative_difference(loss, self.loss)
        pairs = zip(gradients, self.gradients, strict=True)
        rows = [(first, relative_difference(g, mean), *shared) for g, mean in pairs]
        self._move(loss, gradients)
        return [[min(max(value, -3.0), 3.0) for value in row] for row in rows]

    def _move(self, loss: float, gradients: list[float]) -> None:
        assert self.loss is not None
        difference = loss - self.loss
        self.loss += _RATE * difference
        self.loss_square += _RATE * (difference**2 - self.loss_square)
        self.gradients = [m + _RATE * (g - m) for g, m in zip(gradients, self.gradients, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The running means."""
        return {"loss": self.loss, "loss_square": self.loss_square, "gradients": list(self.gradients)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.loss = None if state["loss"] is None else float(state["loss"])
        self.loss_square = float(state["loss_square"])
        self.gradients = [float(g) for g in state["gradients"]]
