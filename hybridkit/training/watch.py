"""Noticing a controller that is stuck."""

from __future__ import annotations

from dataclasses import dataclass

from hybridkit.optim.hybrid import HybridOptimizer

PATIENCE = 100  # steps


@dataclass(slots=True)
class StuckWatch:
    """Says once when a learning controller's multiplier does not move for `PATIENCE` steps."""

    bounds: tuple[float, float]
    last: float | None = None
    still: int = 0
    warned: bool = False

    def look(self, multiplier: float, step: int) -> str | None:
        """Take note of one step's multiplier; a warning where the controller looks stuck."""
        self.still = self.still + 1 if multiplier == self.last else 1
        self.last = multiplier
        if self.warned or self.still < PATIENCE:
            return None
        self.warned = True
        if multiplier in self.bounds:
            return (
                f"the learning-rate multiplier has been at its bound {multiplier:g} for {self.still} steps "
                f"(step {step}); the base learning rate is probably far off: change --lr"
            )
        return (
            f"the learning-rate multiplier has not moved from {multiplier:g} for {self.still} steps "
            f"(step {step}); the controller is doing nothing here"
        )


def watch_over(optimizer: object) -> StuckWatch | None:
    """A watch over a controller that learns; a schedule may rest where it likes."""
    if not isinstance(optimizer, HybridOptimizer) or not optimizer.announced.learns:
        return None
    return StuckWatch(optimizer.controller.bounds)
