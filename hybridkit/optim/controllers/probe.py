"""Steps as long as the loss bears, and as what they teach holds for samples that they have not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from annotated_types import Ge, Gt, Le, Lt

from hybridkit.optim.controllers.trust_ratio import FURTHEST, TrustRatio
from hybridkit.optim.protocol import Outcome, Proposal, TrainingState, Verdict
from hybridkit.options import option

CLOSEST: Final = 5  # steps between two looks: over fewer a mean is as noisy as the weights


class Probe(TrustRatio):
    """`trust-ratio` within a bound that follows the loss of a probe, samples held back from a run's first
    part: the test of acceptance of a trust region whose step is all that has happened since the best weights
    (Conn, Gould and Toint 2000, "Trust-Region Methods", algorithm 6.1.1).

        now and then:  loss = that of the probe, under the running mean of the weights
        loss <= best:    best <- loss; remember the mean;    bound <- bound * forth
        loss > limit:    the weights go back to that mean;   factor, bound <- factor * back
        always:          factor <= bound, which is infinite at first
        limit = best + rise best + share_won (loss at the first look - best)

    The ratio tells steps that are too short for what the loss bears, whatever the data; the probe tells what
    is only memorised, where the training loss falls and the probe rises. Without anybody who has a probe, or
    where the run's length is unknown, it is `trust-ratio`.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(TrustRatio.Options):
        """Options of `probe`."""

        looks: Annotated[int, Ge(1)] = option(20, "how often the probe is looked at, at most")
        rise: Annotated[float, Ge(0.0)] = option(
            0.05, "by what share the probe's loss may lie above its least"
        )
        share_won: Annotated[float, Ge(0.0)] = option(
            0.01, "and by what share of what it has fallen, which counts where it is nearly 0"
        )
        back: Annotated[float, Gt(0.0), Le(1.0)] = option(0.5, "what the factor is multiplied by above it")
        forth: Annotated[float, Ge(1.0), Lt(10.0)] = option(1.5, "what its bound is, at every new least")

    options: Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options or self.Options())
        self.probe_until, self.probe_looks = self.options.until, self.options.looks
        self.bound, self.best, self.first = math.inf, math.inf, math.nan

    def propose(self, state: TrainingState) -> Proposal:
        """The plan's multiplier times the factor."""
        proposal = super().propose(state)
        taken, end = state.step_number + 1, int(state.max_steps * self.options.until)
        if taken > end:
            return proposal
        every = max(end // self.options.looks, CLOSEST)
        return replace(proposal, averaged_over=every, wants_probe=taken % every == 0)

    def feedback(self, state: TrainingState, outcome: Outcome) -> None:
        """Move the factor by the ratio, within the bound."""
        super().feedback(state, outcome)
        self.factor = min(self.factor, self.bound)

    def judge(self, loss: float) -> Verdict:
        """Of the probe's loss: what becomes of the weights. A loss that is not a number is the worst."""
        o = self.options
        if not math.isfinite(self.first):
            self.first = loss
        if loss <= self.best:
            self.best, self.bound = loss, self.bound * o.forth
            return Verdict.BEST
        if loss <= self.best + o.rise * abs(self.best) + o.share_won * (self.first - self.best):
            return Verdict.NEITHER
        self.factor = self.bound = max(self.factor * o.back, 1 / FURTHEST)
        return Verdict.WORSE

    def state_dict(self) -> dict[str, Any]:
        """The factor's, its bound and the least loss."""
        return {**super().state_dict(), "bound": self.bound, "best": self.best, "first": self.first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.bound, self.best, self.first = (float(state[name]) for name in ("bound", "best", "first"))
