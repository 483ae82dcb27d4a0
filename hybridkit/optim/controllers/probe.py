"""Steps as long as what they teach holds for samples that they have not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from annotated_types import Ge, Gt, Le, Lt

from hybridkit.optim.controllers.relative_step import RelativeStep
from hybridkit.optim.protocol import Proposal, TrainingState, Verdict
from hybridkit.options import option

CLOSEST: Final = 5  # steps between two looks: over fewer a mean is as noisy as the weights


class Probe(RelativeStep):
    """`relative-step` times a factor that follows the loss of a probe, samples held back from a run's first
    part: a trust region whose step is all that has happened since the best weights (Conn, Gould and Toint
    2000, "Trust-Region Methods", algorithm 6.1.1).

        now and then:  loss = that of the probe, under the running mean of the weights
        loss <= best:             best <- loss; remember the mean;    factor <- min(longer factor, 1)
        loss > (1 + rise) best:   the weights go back to that mean;   factor <- max(shorter factor, shortest)

    Where long steps only memorise, the probe rises though the training loss falls. Without anybody who has a
    probe, or where the run's length is unknown, the factor stays 1.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(RelativeStep.Options):
        """Options of `probe`."""

        until: Annotated[float, Gt(0.0), Lt(1.0)] = option(
            0.5, "share of the run in which samples are held back and looked at"
        )
        looks: Annotated[int, Ge(1)] = option(20, "how often that happens, at most")
        rise: Annotated[float, Ge(0.0)] = option(
            0.05, "by what share the probe's loss may lie above its least"
        )
        shorter: Annotated[float, Gt(0.0), Le(1.0)] = option(0.5, "what the factor is multiplied by above it")
        longer: Annotated[float, Ge(1.0), Lt(10.0)] = option(1.5, "and at every new least")
        shortest: Annotated[float, Gt(0.0), Le(1.0)] = option(0.1, "the least factor")

    options: Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options or self.Options())
        self.probe_until, self.probe_looks = self.options.until, self.options.looks
        self.factor, self.best = 1.0, math.inf

    def propose(self, state: TrainingState) -> Proposal:
        """The plan's multiplier times the factor."""
        correction, shape = self.parts(state)
        multiplier = correction * shape * self.factor
        taken, end = state.step_number + 1, int(state.max_steps * self.options.until)
        if taken > end:
            return Proposal(multiplier)
        every = max(end // self.options.looks, CLOSEST)
        return Proposal(multiplier, averaged_over=every, wants_probe=taken % every == 0)

    def judge(self, loss: float) -> Verdict:
        """Of the probe's loss: what becomes of the weights. A loss that is not a number is the worst."""
        o = self.options
        if loss <= self.best:
            self.best, self.factor = loss, min(self.factor * o.longer, 1.0)
            return Verdict.BEST
        if loss <= self.best + o.rise * abs(self.best):
            return Verdict.NEITHER
        self.factor = max(self.factor * o.shorter, o.shortest)
        return Verdict.WORSE if math.isfinite(self.best) else Verdict.NEITHER

    def state_dict(self) -> dict[str, Any]:
        """The plan's, the factor and the least loss."""
        return {**super().state_dict(), "factor": self.factor, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.factor, self.best = float(state["factor"]), float(state["best"])
