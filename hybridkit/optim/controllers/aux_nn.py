"""The auxiliary network as a controller: it scales the steps that `relative-step` plans, and the radius."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from hybridkit.errors import UsageError
from hybridkit.optim.controllers.features import relative_difference
from hybridkit.optim.controllers.network import MultiplierNetwork
from hybridkit.optim.controllers.relative_step import RelativeStep, clipped
from hybridkit.optim.protocol import Outcome, Proposal, TrainingState
from hybridkit.options import option


class AuxNN:
    """The auxiliary network around a schedule; its feedback is the step's relative loss reduction.

        multiplier = clip(network * c, 0.1, 10) * shape(progress)              c, shape: `RelativeStep`

    With parameter clusters it gives one multiplier per cluster, from the same weights and the cluster's own
    gradient. The radius's factor is learned from the steps that the constraint shortened; on the others it
    did nothing. With `multiplier` "random" it tries and learns nothing from it (what learning has to beat).
    """

    bounds = RelativeStep.bounds
    uses_update_alignment = False
    per_cluster = True
    learns = True

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(RelativeStep.Options):
        """Options of `aux-nn`."""

        multiplier: Literal["learned", "random"] = option(
            "learned", "learned, or random: trials alone, nothing is learned from them"
        )
        hidden_size: Annotated[int, Ge(1)] = option(16, "width of the hidden layer")
        learning_rate: Annotated[float, Ge(0.0)] = option(
            1e-3, "learning rate of the auxiliary network itself"
        )
        exploration: Annotated[float, Gt(0.0), Le(1.0)] = option(
            0.05, "spread of the trials, in tanh's argument"
        )
        pull: Annotated[float, Ge(0.0)] = option(1.0, "how strongly it is drawn back to multiplier 1")
        seed: Annotated[int, Ge(0)] = option(0, "seed of its weights and its trials")

    def __init__(self, options: Options | None = None) -> None:
        self.options = o = options or self.Options()
        self.plan = RelativeStep(o)
        self.network = MultiplierNetwork(
            hidden_size=o.hidden_size,
            learning_rate=o.learning_rate,
            exploration=o.exploration,
            pull=o.pull,
            seed=o.seed,
        )

    def propose(self, state: TrainingState) -> Proposal:
        """The plan times the network's part. Raises UsageError where nobody observed the loss."""
        correction, shape = self.plan.parts(state)
        multipliers, factor = self.network.decide(state)
        planned = [clipped(m * correction) * shape for m in multipliers]
        radius = state.trust_radius * factor if state.trust_radius > 0 else None
        return Proposal(tuple(planned) if len(planned) > 1 else planned[0], radius)

    def feedback(self, state: TrainingState, outcome: Outcome) -> None:
        """Let the network learn from the relative reduction of the loss."""
        correction, shape = self.plan.parts(state)
        if self.options.multiplier == "random" or shape == 0:
            return
        proposed, radius = outcome.proposal.lr_multiplier, outcome.proposal.trust_radius
        multipliers = proposed if isinstance(proposed, tuple) else (proposed,)
        factor = None
        if outcome.constraint_active and radius is not None:
            factor = radius / state.trust_radius
        tried = [clipped(m / (correction * shape)) for m in multipliers]
        self.network.learn(tried, factor, relative_difference(outcome.loss_before, outcome.loss_after))

    def state_dict(self) -> dict[str, Any]:
        """The network's state and the plan's."""
        return {"network": self.network.state_dict(), "plan": self.plan.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both. Raises UsageError for a run from when `aux-nn` was the plan alone."""
        if "plan" not in state:
            raise UsageError("this run's aux-nn is what relative-step is today; train it anew")
        self.network.load_state_dict(state["network"])
        self.plan.load_state_dict(state["plan"])
