"""Running statistics of the loss and the gradient that controllers see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SMOOTHING = 0.9


@dataclass(slots=True)
class Statistics:
    """Exponentially smoothed loss and gradient norm, with the bias of the first steps corrected.

    With m_t(x) = (sum of 0.9^i x_{t-i}) / (sum of 0.9^i), the smoothed value of x at step t:
    `loss_trend` = m_t(loss) - m_{t-1}(loss), 0 at first; `gradient_variance` = m_t(g^2) - m_t(g)^2 >= 0.
    """

    weight: float = 0.0
    loss: float = 0.0
    loss_trend: float = 0.0
    gradient: float = 0.0
    gradient_square: float = 0.0

    @property
    def gradient_variance(self) -> float:
        """Variance of the gradient's norm over about the last ten steps."""
        return max(self.gradient_square - self.gradient**2, 0.0)

    def update(self, loss: float, gradient: float) -> None:
        """Take in one step."""
        before = self.loss
        first = self.weight == 0.0
        self.weight = SMOOTHING * self.weight + 1.0
        share = 1.0 / self.weight
        self.loss += share * (loss - self.loss)
        self.loss_trend = 0.0 if first else self.loss - before
        self.gradient += share * (gradient - self.gradient)
        self.gradient_square += share * (gradient**2 - self.gradient_square)

    def state_dict(self) -> dict[str, Any]:
        """All numbers by name."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in asdict(self):
            setattr(self, name, float(state[name]))
