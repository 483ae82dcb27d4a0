"""The small interfaces of hybrid optimisation: what a controller and a constraint see and answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Protocol

from torch import Tensor


@dataclass(slots=True)
class TrainingState:
    """What a controller sees before step `step_number` (counted from 0). Plain Python numbers.

    The first six fields are the auxiliary network's classic features; the rest help other controllers.
    """

    current_loss: float  # nan where the caller does not observe losses
    gradient_magnitude: float  # ||g||_2 over all parameters
    cluster_id: int  # data cluster of the batch, -1 where the batch is spread over all clusters
    loss_trend: float  # slope of the smoothed loss, per step; negative while training goes well
    gradient_variance: float  # variance of ||g||_2 over the recent steps
    step_number: int
    max_steps: int = 0  # 0: unknown
    trust_radius: float = 0.0  # what the adaptation rule would use for this step
    update_alignment: float = 0.0  # cos(g_t, -(last update)); > 0: the last step could have been longer
    cluster_histogram: tuple[float, ...] = ()  # share of the batch per data cluster
    parameter_gradients: tuple[float, ...] = ()  # ||g||_2 per parameter cluster
    relative_step: float = (
        0.0  # how far multiplier 1 moves a matrix, over its size; 0: the base does not know
    )

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]; 0 where the length is unknown."""
        return min(self.step_number / self.max_steps, 1.0) if self.max_steps else 0.0


@dataclass(frozen=True, slots=True)
class Proposal:
    """A controller's decision for one step.

    `lr_multiplier` scales every group's learning rate for this step alone; a tuple holds one multiplier
    per parameter cluster. `trust_radius` None leaves the radius to the adaptation rule. `wants_ratio` asks
    for the `reduction_ratio` of the step's outcome, which costs a forward pass. `wants_probe` asks to `judge`
    the loss of samples held back, under the mean of the weights over the last `averaged_over` steps (0: no
    mean is kept from here on).
    """

    lr_multiplier: float | tuple[float, ...] = 1.0
    trust_radius: float | None = None
    wants_ratio: bool = False
    averaged_over: int = 0
    wants_probe: bool = False


class Verdict(Enum):
    """On the running mean of the weights, by the loss of samples held back."""

    BEST = "best"  # remember it
    WORSE = "worse"  # go back to the one that is remembered
    NEITHER = "neither"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step did; known, and given to the controller, when the next step begins."""

    loss_before: float
    loss_after: float
    proposal: Proposal
    update_magnitude: float  # ||delta||_2 as applied
    constraint_active: bool
    # what the loss of the step's own batch fell by, over what its gradient promised, -<g, delta>; nan where
    # it was not asked for, or nobody evaluates the loss again
    reduction_ratio: float = math.nan


class LRController(Protocol):
    """Sets the learning-rate multiplier and the radius. Pure decisions: it never touches parameters.

    `bounds` holds the least and the largest multiplier it may propose. `uses_update_alignment` True asks
    for `TrainingState.update_alignment`, which costs one pass over the parameters. `learns` True says that
    the multiplier is found out in the run, so that one that never moves is worth a warning. `per_cluster`
    True announces tuples of multipliers wherever there are parameter clusters. `uses_reduction_ratio` True
    says that proposals may want that. A controller that wants a probe is a `Judge`: `probe_until` is the
    share of the run in which it does, `probe_looks` how often. All but the first two may be left out
    (`announced`).
    """

    bounds: tuple[float, float]
    uses_update_alignment: bool
    learns: bool
    per_cluster: bool

    def propose(self, state: TrainingState) -> Proposal:
        """Decide for the step that is about to be taken."""
        ...

    def feedback(self, state: TrainingState, outcome: Outcome) -> None:
        """Learn from what the step decided in `state` did."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: tensors, numbers, strings, lists and dicts of them."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


class Judge(LRController, Protocol):
    """A controller that decides by samples held back from training."""

    probe_until: float
    probe_looks: int

    def judge(self, loss: float) -> Verdict:
        """What becomes of the weights whose mean has this loss on them."""
        ...


@dataclass(frozen=True, slots=True)
class Announced:
    """What a controller or a constraint says about itself."""

    uses_update_alignment: bool = False
    learns: bool = False
    per_cluster: bool = False
    uses_reduction_ratio: bool = False
    probe_until: float = 0.0
    probe_looks: int = 0


def announced(strategy: object) -> Announced:
    """The attributes of a strategy, with the defaults of those that it leaves out."""
    plain: Any = Announced()
    said = {f.name: getattr(strategy, f.name, getattr(plain, f.name)) for f in fields(Announced)}
    return Announced(**said)


@dataclass(frozen=True, slots=True)
class ConstraintReport:
    """What a projection did, as tensors on the updates' device (nothing is synchronised).

    `norm`: fp32 of the radius's shape, the update's size before projection in the constraint's own norm.
    `active`: bool [number of tensors], True where that tensor's update was changed.
    """

    norm: Tensor
    active: Tensor


class Constraint(Protocol):
    """Projects an update into a trust region, in place. Never enlarges; an inactive one changes no bit.

    It keeps no memory between steps: what it does depends on its arguments, its options and `bind` alone.
    `per_cluster` True asks for one radius per parameter cluster; left out, it is False (`announced`).
    """

    per_cluster: bool

    def apply(
        self, updates: Sequence[Tensor], parameters: Sequence[Tensor], radius: Tensor | float
    ) -> ConstraintReport:
        """Project `updates` (same shapes as `parameters`, whose values are from before the step).

        `radius` is a scalar, or a tensor [number of parameter clusters] for a constraint that was given
        clusters through `bind`.
        """
        ...

    def bind(self, parameters: Sequence[Tensor], clusters: Sequence[int]) -> None:
        """Told before the first step, and again if parameters are added: the cluster of each tensor."""
        ...
