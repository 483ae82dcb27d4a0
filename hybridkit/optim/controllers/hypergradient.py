"""Hypergradient descent on the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le

from hybridkit.optim.protocol import Outcome, Proposal, TrainingState
from hybridkit.options import option


class Hypergradient:
    """Multiplicative hypergradient descent (Baydin et al. 2018, arXiv 1703.04782, section 3).

        m_t = clip(m_{t-1} * (1 + beta * cos(g_t, -delta_{t-1})), 0.1, 10),    m_0 = 1

    The derivative of the loss at W_t = W_{t-1} + delta_{t-1} by the last learning rate is
    <g_t, delta_{t-1}> / lr: where the new gradient g_t still points against the last update delta_{t-1}, a
    longer step would have been better. For plain SGD delta_{t-1} = -lr * g_{t-1}, so the cosine is the
    normalised inner product of successive gradients; for every other optimizer it uses the update that was
    really made, after the constraint. The cosine makes the rule independent of the scale of loss and
    parameters. With mini-batches it is dominated by noise; beta sets how many steps are averaged over.
    """

    bounds = (0.1, 10.0)
    uses_update_alignment = True
    learns = True
    per_cluster = False

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `hypergradient`."""

        beta: Annotated[float, Ge(0.0), Le(0.5)] = option(
            0.02, "largest relative change of the rate per step"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.multiplier = 1.0

    def propose(self, state: TrainingState) -> Proposal:
        """Move the multiplier along the alignment of this gradient with the last update."""
        low, high = self.bounds
        moved = self.multiplier * (1 + self.options.beta * state.update_alignment)
        self.multiplier = min(max(moved, low), high)
        return Proposal(self.multiplier)

    def feedback(self, state: TrainingState, outcome: Outcome) -> None:
        """Nothing to do: the gradient says it all."""

    def state_dict(self) -> dict[str, Any]:
        """The multiplier."""
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the multiplier."""
        self.multiplier = float(state["multiplier"])
