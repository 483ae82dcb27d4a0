"""What is kept of a step until the next one begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hybridkit.optim.protocol import Proposal, TrainingState

Metrics = dict[str, float | bool]


@dataclass(slots=True)
class StepRecord:
    """What a step saw, decided and did.

    `metrics` gets `update_magnitude`, `unconstrained_norm` and `constraint_active` once they are known on
    the host.
    """

    state: TrainingState
    proposal: Proposal
    metrics: Metrics

    def state_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> StepRecord:
        """The record whose `state_dict` this is; lists that were tuples become tuples again."""
        seen: dict[str, Any] = {k: _tuples(v) for k, v in state["state"].items()}
        decided: dict[str, Any] = {k: _tuples(v) for k, v in state["proposal"].items()}
        return cls(TrainingState(**seen), Proposal(**decided), dict(state["metrics"]))


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def describe(state: TrainingState, proposal: Proposal, multipliers: list[float], lr: float) -> Metrics:
    """The metrics of a step that are known before it is taken.

    `lr_multiplier` is the mean over the parameter groups; where it differs between parameter clusters,
    `lr_multiplier_0`, `lr_multiplier_1`, ... follow. `learning_rate` is `lr` times that mean.
    """
    multiplier = sum(multipliers) / len(multipliers)
    metrics: Metrics = {
        "loss": state.current_loss,
        "learning_rate": lr * multiplier,
        "lr_multiplier": multiplier,
        "trust_radius": state.trust_radius if proposal.trust_radius is None else proposal.trust_radius,
        "constraint_active": False,
        "gradient_magnitude": state.gradient_magnitude,
        "loss_trend": state.loss_trend,
        "gradient_variance": state.gradient_variance,
        "update_alignment": state.update_alignment,
    }
    if isinstance(proposal.lr_multiplier, tuple):
        metrics |= {f"lr_multiplier_{i}": m for i, m in enumerate(proposal.lr_multiplier)}
    return metrics
