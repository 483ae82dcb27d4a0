"""A schedule of relative steps: what a step should change of a matrix, whatever learning rate was given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt

from hybridkit.optim.controllers.schedules import WSD, Constant, Share
from hybridkit.optim.protocol import Proposal, TrainingState
from hybridkit.options import option

LARGEST_CORRECTION = 10.0
REFERENCE_STEPS = 300
SHORTEST_STEP, LONGEST_STEP = 1 / 2, 4 / 3  # of the step in a run of that many: runs of 1,200 and of 170


class RelativeStep(Constant):
    """Warm-up and decay around a relative step ("relative step sizes": Shazeer and Stern 2018, arXiv
    1804.04235). Nothing is learned.

        multiplier = c * shape(progress),    c = clip(relative_step / given, 0.1, 10)

    Where the base optimizer takes relative steps (`steepest`), `given` is what its learning rate stands for
    at the first step (so that a scheduler of the caller's still counts), and c makes up for a rate that is
    up to ten times too small or too large; for other base optimizers c is 1. The shape is a linear warm-up
    and a linear decay to zero, for relative steps times the root of 300 / max_steps, within 1/2 and 4/3.
    Without `max_steps` there is no decay to plan: relative steps then have the shape's mean for good,
    1 - (warmup + decay) / 2, and others the learning rate that they were given.
    """

    bounds = (0.0, LARGEST_CORRECTION * LONGEST_STEP)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `relative-step`."""

        relative_step: Annotated[float, Gt(0.0)] = option(
            0.06,
            "what a step changes of a matrix in a run of 300 steps, where the base optimizer takes relative"
            " steps; in longer runs it is less",
        )
        warmup: Share = option(0.05, "share of the run over which the multiplier rises linearly")
        decay: Share = option(0.8, "share of the run over which it falls to zero at the end")

    def __init__(self, options: Options | None = None) -> None:
        self.options = o = options or self.Options()
        self.shape = WSD(WSD.Options(warmup=o.warmup, decay=o.decay))
        self.given = 0.0  # relative step of the learning rate at the first step

    def propose(self, state: TrainingState) -> Proposal:
        """The multiplier of this step."""
        correction, shape = self.parts(state)
        return Proposal(correction * shape)

    def parts(self, state: TrainingState) -> tuple[float, float]:
        """c and the shape."""
        self.given = self.given or state.relative_step
        correction = clipped(self.options.relative_step / self.given) if self.given > 0 else 1.0
        if state.max_steps <= 0:
            mean = 1 - (self.options.warmup + self.options.decay) / 2
            return correction, mean if self.given > 0 else 1.0
        shape = self.shape.propose(state).lr_multiplier
        assert isinstance(shape, float)
        return correction, shape * (_step_for(state.max_steps) if self.given > 0 else 1.0)

    def state_dict(self) -> dict[str, Any]:
        """What the learning rate stood for."""
        return {"given": self.given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore that."""
        self.given = float(state["given"])


def clipped(multiplier: float) -> float:
    """Within a tenth and ten."""
    return min(max(multiplier, 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)


def _step_for(max_steps: int) -> float:
    """Relative steps in a run of `max_steps` (> 0) over those of 300: by the inverse root of its length.

    Where gradients are noisy, the best constant step falls with the root of their number (Nemirovski et al.
    2009, "Robust Stochastic Approximation", section 2.2). The bounds are what trials showed.
    """
    return min(max(math.sqrt(REFERENCE_STEPS / max_steps), SHORTEST_STEP), LONGEST_STEP)
