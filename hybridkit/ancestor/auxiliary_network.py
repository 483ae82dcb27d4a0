"""The auxiliary network by its old methods."""

from __future__ import annotations

from hybridkit.optim.controllers.network import MultiplierNetwork
from hybridkit.optim.protocol import TrainingState


class AuxiliaryNeuralNetwork(MultiplierNetwork):
    """`MultiplierNetwork` for one multiplier at a time, which really learns from the feedback."""

    def predict_learning_rate(self, state: TrainingState) -> float:
        """The multiplier for the step that begins in `state`, in [0.1, 10], exploration included.

        Asked again before the feedback, it gives the same answer for the same state.
        """
        return self.decide(state)[0][0]

    def predict_trust_region(self, state: TrainingState) -> float:
        """The radius for the step that begins in `state`: half to twice `state.trust_radius`."""
        return state.trust_radius * self.decide(state)[1]

    def update_with_feedback(self, lr_multiplier: float, loss_improvement: float) -> None:
        """Learn that the last decision, taken with `lr_multiplier`, made the loss fall by `loss_improvement`.

        The multiplier may be another one than predicted. The improvement may have any unit: only its
        size relative to earlier ones counts.
        """
        self.learn([lr_multiplier], None, loss_improvement)
