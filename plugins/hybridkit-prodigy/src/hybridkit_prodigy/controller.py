"""A learning-rate controller that has no learning rate of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import prodigyopt
import torch
from annotated_types import Ge, Gt, Le

from hybridkit.errors import UsageError
from hybridkit.optim.protocol import Outcome, Proposal, TrainingState
from hybridkit.options import option


class ProdigyController:
    """Hypergradient descent on the logarithm of the multiplier, with Prodigy's step size.

    The step x' = x + Delta, Delta = m * u, depends on the multiplier m. The loss of the next batch
    therefore has this derivative with respect to theta = log m (Baydin et al. 2018, arXiv 1703.04782):

        d loss / d theta = <g', Delta> = -|g'| * |Delta| * cos(g', -Delta)

    A controller is told the three factors. Plain hypergradient descent needs a step size for theta, which
    is one more number to tune. Here theta is the one parameter of `prodigyopt.Prodigy` (Mishchenko and
    Defazio 2023, arXiv 2306.06101), which estimates the distance to the best theta from the gradients seen
    so far and does not care about their scale. A step that the trust region cut teaches nothing: its length
    was not m's doing.
    """

    uses_update_alignment = True
    learns = True
    per_cluster = False

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `prodigy`."""

        initial_distance: Annotated[float, Gt(0.0)] = option(
            0.01, "first guess of how far log(multiplier) has to move; grows on its own"
        )
        distance_factor: Annotated[float, Gt(0.0)] = option(
            1.0, "scales the estimated distance (prodigyopt's d_coef)"
        )
        low: Annotated[float, Gt(0.0), Le(1.0)] = option(0.1, "least multiplier")
        high: Annotated[float, Ge(1.0)] = option(10.0, "largest multiplier")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        if not math.isfinite(self.options.high):
            raise UsageError("the largest multiplier must be finite")
        self.bounds = (self.options.low, self.options.high)
        self._last_update = 0.0  # |Delta| of the step that the next gradient judges; 0: nothing to learn from
        self._reset()

    def _reset(self) -> None:
        self._theta = torch.zeros(1, dtype=torch.float64)
        self._prodigy = prodigyopt.Prodigy(
            [self._theta],
            lr=1.0,
            betas=(0.9, 0.99),
            d0=self.options.initial_distance,
            d_coef=self.options.distance_factor,
            use_bias_correction=True,
        )

    def propose(self, state: TrainingState) -> Proposal:
        """Judge the last step by this step's gradient, then decide."""
        slope = -state.gradient_magnitude * self._last_update * state.update_alignment
        if slope != 0 and math.isfinite(slope):
            self._descend(slope)
        return Proposal(lr_multiplier=self._multiplier())

    def feedback(self, state: TrainingState, outcome: Outcome) -> None:
        """Remember the size of the update, unless the trust region set it."""
        self._last_update = 0.0 if outcome.constraint_active else outcome.update_magnitude

    def _descend(self, slope: float) -> None:
        # Prodigy ignores the scale of its gradients, but squares them: keep the squares finite.
        self._theta.grad = torch.tensor([max(-1e60, min(1e60, slope))], dtype=torch.float64)
        self._prodigy.step()
        low, high = (math.log(bound) for bound in self.bounds)
        self._theta.clamp_(low, high)

    def _multiplier(self) -> float:
        low, high = self.bounds
        return min(max(math.exp(self._theta.item()), low), high)

    def state_dict(self) -> dict[str, Any]:
        """The multiplier, Prodigy's state, and the size of the last update."""
        prodigy = self._prodigy.state_dict()
        return {
            "log_multiplier": self._theta.clone(),
            "last_update": self._last_update,
            "moments": prodigy["state"].get(0, {}),
            "group": {k: v for k, v in prodigy["param_groups"][0].items() if k != "params"},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._reset()
        self._theta.copy_(state["log_multiplier"])
        self._last_update = state["last_update"]
        moments = {0: dict(state["moments"])} if state["moments"] else {}
        self._prodigy.load_state_dict({"state": moments, "param_groups": [{**state["group"], "params": [0]}]})
