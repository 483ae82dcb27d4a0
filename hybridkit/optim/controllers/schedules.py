"""Learning-rate schedules as controllers: decided by progress alone, nothing is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le

from hybridkit.errors import UsageError
from hybridkit.optim.protocol import Outcome, Proposal, TrainingState
from hybridkit.options import option

Share = Annotated[float, Ge(0.0), Le(1.0)]


class Constant:
    """Multiplier 1 at every step; the radius is left to its adaptation rule."""

    bounds = (1.0, 1.0)
    uses_update_alignment = False
    learns = False
    per_cluster = False

    def propose(self, state: TrainingState) -> Proposal:
        """Leave everything as it is."""
        return Proposal()

    def feedback(self, state: TrainingState, outcome: Outcome) -> None:
        """Nothing is learned."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: a schedule depends on the step number alone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class Cosine(Constant):
    """Linear warm-up to 1, then half a cosine down to `floor` (Loshchilov and Hutter 2017, arXiv 1608.03983).

    With T steps in all and W = round(warmup * T): m_t = (t + 1) / W for t < W, then
    m_t = floor + (1 - floor) * (1 + cos(pi * (t - W) / (T - W))) / 2; floor after step T.
    """

    bounds = (0.0, 1.0)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `cosine`."""

        warmup: Share = option(0.05, "share of the run over which the multiplier rises linearly to 1")
        floor: Share = option(0.0, "multiplier at the end of the run")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def propose(self, state: TrainingState) -> Proposal:
        """The multiplier of this step. Raises UsageError where the length of the run is unknown."""
        total = _length(state, "cosine")
        step, warmup = state.step_number, round(self.options.warmup * total)
        if step < warmup:
            return Proposal((step + 1) / warmup)
        share = min((step - warmup) / max(total - warmup, 1), 1.0)
        floor = self.options.floor
        return Proposal(floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))


class WSD(Constant):
    """Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): 1 for most of the run, then linear down.

    With T steps, W = round(warmup * T), D = round(decay * T): m_t = (t + 1) / W for t < W, 1 until T - D,
    then floor + (1 - floor) * (T - t) / D; floor after step T.
    """

    bounds = (0.0, 1.0)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `wsd`."""

        warmup: Share = option(0.05, "share of the run over which the multiplier rises linearly to 1")
        decay: Share = option(0.2, "share of the run over which it falls at the end")
        floor: Share = option(0.0, "multiplier at the end of the run")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        if self.options.warmup + self.options.decay > 1:
            raise UsageError("wsd: warmup + decay is more than 1, the whole run; lower one of them")

    def propose(self, state: TrainingState) -> Proposal:
        """The multiplier of this step. Raises UsageError where the length of the run is unknown."""
        total = _length(state, "wsd")
        step, warmup = state.step_number, round(self.options.warmup * total)
        decay = round(self.options.decay * total)
        if step < warmup:
            return Proposal((step + 1) / warmup)
        if step < total - decay or decay == 0:
            return Proposal(1.0)
        floor = self.options.floor
        return Proposal(floor + (1 - floor) * max(total - step, 0) / decay)


def _length(state: TrainingState, name: str) -> int:
    if state.max_steps <= 0:
        raise UsageError(f"{name} has to know the length of the run; give max_steps")
    return state.max_steps
