"""Steps that are as long as the loss bears: a trust region's rule on what a step did to its own batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from annotated_types import Ge, Gt, Le, Lt

from hybridkit.optim.controllers.relative_step import RelativeStep
from hybridkit.optim.protocol import Outcome, Proposal, TrainingState
from hybridkit.options import option

FURTHEST: Final = 100.0  # from the plan, either way


class TrustRatio(RelativeStep):
    """`relative-step` times a factor that follows the reduction ratio (Conn, Gould and Toint 2000,
    "Trust-Region Methods", algorithm 6.1.1).

        rho = (loss before - loss after, on the step's own batch) / -<g, delta>
        factor <- factor * shorter where rho < low,    factor * longer where rho > high, behind the warm-up

    rho is near 1 where steps are so short that the loss is a plane, and near 0 or below where they lead
    across the valley. It is measured at every `every`th step until `until` of the run, by whoever gives the
    optimizer `evaluate`; without that the factor stays 1.
    """

    uses_reduction_ratio = True
    bounds = (0.0, RelativeStep.bounds[1] * FURTHEST)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(RelativeStep.Options):
        """Options of `trust-ratio`."""

        every: Annotated[int, Ge(1)] = option(8, "steps between two measurements")
        until: Annotated[float, Gt(0.0), Le(1.0)] = option(0.5, "share of the run in which there are any")
        low: float = option(0.15, "the ratio below which steps become shorter")
        high: float = option(0.7, "the ratio above which they become longer")
        shorter: Annotated[float, Gt(0.0), Le(1.0)] = option(0.65, "what the factor is multiplied by then")
        longer: Annotated[float, Ge(1.0), Lt(10.0)] = option(1.3, "and then")

    options: Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options or self.Options())
        self.factor = 1.0

    def propose(self, state: TrainingState) -> Proposal:
        """The plan's multiplier times the factor."""
        correction, shape = self.parts(state)
        due = state.step_number % self.options.every == 0 and state.progress < self.options.until
        return Proposal(correction * shape * self.factor, wants_ratio=due and shape > 0)

    def feedback(self, state: TrainingState, outcome: Outcome) -> None:
        """Move the factor where the ratio was measured."""
        o, ratio = self.options, outcome.reduction_ratio
        if math.isnan(ratio):
            return
        if ratio < o.low:
            self.factor *= o.shorter
        elif ratio > o.high and state.progress >= o.warmup:  # before, every plan's steps are too short
            self.factor *= o.longer
        self.factor = min(max(self.factor, 1 / FURTHEST), FURTHEST)

    def state_dict(self) -> dict[str, Any]:
        """The plan's and the factor."""
        return {**super().state_dict(), "factor": self.factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.factor = float(state["factor"])
