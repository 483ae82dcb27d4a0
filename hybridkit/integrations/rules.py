"""What a trainer of somebody else's has to keep to: one schedule, one length, the ramp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from hybridkit.errors import UsageError
from hybridkit.optim.controllers.aux_nn import AuxNN
from hybridkit.optim.controllers.relative_step import RelativeStep
from hybridkit.optim.controllers.schedules import WSD, Cosine
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.quant.layers import qat_layers, set_ramp
from hybridkit.quant.recorded import Recorded
from hybridkit.training.config import HYBRID_RAMP

_PLANNED = (RelativeStep, Cosine, WSD, AuxNN)


def hybrid_in(optimizer: Any) -> HybridOptimizer | None:
    """The HybridOptimizer that `optimizer` is, or wraps as accelerate's and Lightning's do; else None."""
    while optimizer is not None and not isinstance(optimizer, HybridOptimizer):
        optimizer = getattr(optimizer, "optimizer", None)
    found: HybridOptimizer | None = optimizer
    return found


def check_schedule(optimizer: HybridOptimizer | None, remedy: str) -> None:
    """Raise UsageError where a schedule of the trainer's would multiply the one that the controller plans.

    To be called where the trainer has a schedule; `remedy` says how it is taken out.
    """
    name = type(optimizer.controller).__name__ if optimizer is not None else ""
    if optimizer is not None and isinstance(optimizer.controller, _PLANNED):
        raise UsageError(
            f"two schedules would multiply: the trainer's, and the one of {name}; "
            f"{remedy}, or make the optimizer with lr_controller=None"
        )


def agree_on_length(optimizer: HybridOptimizer | None, done: int, steps: float) -> None:
    """Make the plan of an optimizer that was told no length `steps` long.

    done: steps that the trainer has taken; the optimizer may have taken fewer, where gradient scaling skipped
    some. `steps` is infinite, or below 1, where the trainer does not know it. Raises UsageError for an
    optimizer that has taken more steps, or plans another number of them.
    """
    if optimizer is None:
        return
    if optimizer.step_number > done:
        raise UsageError(
            f"the optimizer has taken {optimizer.step_number} steps and the trainer {done}; make a new one "
            "for each run"
        )
    if not _known(steps):
        return
    if optimizer.max_steps not in (0, steps):
        raise UsageError(
            f"the optimizer plans {optimizer.max_steps} steps and the trainer takes {steps:g}; leave "
            "max_steps out of hybrid_optimizer, then it is the trainer's"
        )
    optimizer.max_steps = int(steps)


def _known(steps: float) -> bool:
    return math.isfinite(steps) and steps >= 1


@dataclass(frozen=True)
class Quantization:
    """The fake-quantised layers of `network` in the course of a run.

    ramp: over which share of the run they go from full precision to quantised, as in `hybridkit train
    --ramp`; None: as that does, 0.8 with a HybridOptimizer, else 0, quantised from the first step. Raises
    UsageError for what hybridkit.json cannot say.
    """

    network: nn.Module
    ramp: float | None = None

    def __post_init__(self) -> None:
        if (found := Recorded.of(self.network)) is not None:
            found.to_json()  # what cannot be written down is refused now, and not at the first checkpoint

    def before_step(self, step: int, steps: float, hybrid: bool) -> None:
        """Set the ramp for the step after `step` of `steps`."""
        share = self.ramp if self.ramp is not None else HYBRID_RAMP if hybrid else 0.0
        if not 0 <= share <= 1:
            raise UsageError(f"a ramp takes a share of the run, from 0 to 1, not {share}")
        if share == 0 or not qat_layers(self.network):
            return
        if not _known(steps):
            raise UsageError("a ramp needs to know the length of the run; tell the trainer, or say ramp=0")
        set_ramp(self.network, min((step + 1) / (share * steps), 1.0))
