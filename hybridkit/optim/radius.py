"""How the radius of the trust region follows the size of the updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hybridkit.errors import UsageError

TARGET_SHARE: Final = 0.3
WINDOW: Final = 16


class RadiusRule:
    """The radius is a quantile of the norms n_t that recent updates had before they were constrained.

        mu_{t+1} = the (1 - q) quantile of n_{t-15} ... n_t,    q = 0.3

    so that a share q of the steps is shortened, by little. **The constraint activation rate is therefore
    chosen (30 %), not found**; only the first steps and a changing n_t move it: while updates grow more are
    shortened, while they shrink fewer. Nothing but the first step depends on the first radius. No second
    forward pass is needed.

    There is one radius for each ball of the constraint (one, or one per parameter cluster).

    Args:
        initial: radius of the whole update at the first step; k balls start at initial / sqrt(k) each.
        balls: number of balls.
        adapt: False keeps the radius where it is.

    Raises:
        UsageError: if `initial` is not a positive number.
    """

    def __init__(self, initial: float, *, balls: int = 1, adapt: bool = True) -> None:
        if not (initial > 0 and math.isfinite(initial)):
            raise UsageError(f"the trust radius has to be a positive number, not {initial}")
        self.radii = [initial / math.sqrt(balls)] * balls
        self.recent: list[list[float]] = [[] for _ in range(balls)]
        self.adapt = adapt

    @property
    def total(self) -> float:
        """The bound on the whole update that the balls imply together: sqrt(sum of mu^2)."""
        return math.hypot(*self.radii)

    def update(self, norms: Sequence[float]) -> None:
        """Move each radius after a step whose unconstrained update had these norms, one per ball.

        A norm of zero (nothing moved) or NaN says nothing.
        """
        if not self.adapt:
            return
        for ball, norm in enumerate(norms):
            if norm > 0:
                self.recent[ball] = [*self.recent[ball], norm][-WINDOW:]
                self.radii[ball] = _quantile(self.recent[ball])

    def state_dict(self) -> dict[str, Any]:
        """The radii and the norms that they come from."""
        return {"radii": list(self.radii), "recent": [list(norms) for norms in self.recent]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if len(state["radii"]) != len(self.radii):
            raise UsageError(
                f"the saved state has {len(state['radii'])} radii, this optimizer {len(self.radii)}"
            )
        if not all(r > 0 for each in (state["radii"], *state["recent"]) for r in each):
            raise UsageError("a saved trust radius is not a positive number")
        self.radii = [float(r) for r in state["radii"]]
        self.recent = [[float(norm) for norm in norms] for norms in state["recent"]]


def _quantile(norms: Sequence[float]) -> float:
    return sorted(norms)[min(int((1 - TARGET_SHARE) * len(norms)), len(norms) - 1)]
