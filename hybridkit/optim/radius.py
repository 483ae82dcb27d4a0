"""How the radius of the trust region follows the size of the updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hybridkit.errors import UsageError

TARGET_SHARE = 0.3
RATE = 0.1
FIRST_RATE = 2.0


class RadiusRule:
    """The radius tracks a quantile of the unconstrained update's norm n_t.

        mu_{t+1} = mu_t * exp(eta_t * (1[n_t > mu_t] - q)),    eta_t = max(0.1, 2 / (t + 1)),    q = 0.3

    It stands still where P(n_t > mu_t) = q, so in the long run a share q of the steps is shortened, by
    little. **The constraint activation rate is therefore chosen (30 %), not found**; only the first steps
    and a changing n_t move it. The geometric quantile estimate is that of Andrew et al. 2021 (arXiv
    1905.03871, section 2), with a larger rate at first: a radius that is 50 times too small is left within
    10 steps. No second forward pass is needed.

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
        self.adapt = adapt
        self.updates = 0

    @property
    def total(self) -> float:
        """The bound on the whole update that the balls imply together: sqrt(sum of mu^2)."""
        return math.hypot(*self.radii)

    def update(self, norms: Sequence[float]) -> None:
        """Move each radius after a step whose unconstrained update had these norms, one per ball."""
        if not self.adapt:
            return
        rate = max(RATE, FIRST_RATE / (self.updates + 1))
        for ball, norm in enumerate(norms):
            if not math.isnan(norm):
                self.radii[ball] *= math.exp(rate * ((norm > self.radii[ball]) - TARGET_SHARE))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The radii and the number of updates."""
        return {"radii": list(self.radii), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if len(state["radii"]) != len(self.radii):
            raise UsageError(
                f"the saved state has {len(state['radii'])} radii, this optimizer {len(self.radii)}"
            )
        self.radii = [float(r) for r in state["radii"]]
        self.updates = int(state["updates"])
