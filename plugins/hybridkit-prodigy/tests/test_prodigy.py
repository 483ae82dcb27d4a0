from __future__ import annotations

import math

import torch
from hybridkit_prodigy.controller import ProdigyController
from hybridkit_prodigy.optimizer import Prodigy

from hybridkit.optim.protocol import Outcome, TrainingState
from hybridkit.registry import registry
from hybridkit.testing import LRControllerContract, OptimizerContract


class TestController(LRControllerContract):
    def make(self):
        return ProdigyController()


class TestOptimizer(OptimizerContract):
    lr = 1.0

    def make(self):
        return Prodigy(Prodigy.Options(initial_distance=1e-3))


def test_both_are_registered_under_one_name():
    found = registry()
    assert found.load("lr_controller", "hybridkit-prodigy:prodigy") is ProdigyController
    assert found.load("optimizer", "hybridkit-prodigy:prodigy") is Prodigy


def descend(lr: float, *, steps: int = 200, scale: float = 1.0, active: bool = False) -> tuple[float, float]:
    """Gradient descent on scale * |x|^2 / 2 under the controller; the last multiplier and |x|."""
    controller = ProdigyController()
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)
    delta = torch.zeros_like(x)
    multiplier = 1.0
    for step in range(steps):
        gradient = scale * x
        norms = gradient.norm() * delta.norm()
        alignment = float(-(gradient @ delta) / norms) if norms else 0.0
        loss = float(scale * x @ x / 2)
        state = TrainingState(loss, float(gradient.norm()), -1, 0.0, 0.0, step, update_alignment=alignment)
        proposal = controller.propose(state)
        multiplier = proposal.lr_multiplier
        delta = -lr * multiplier * gradient
        x = x + delta
        after = float(scale * x @ x / 2)
        controller.feedback(state, Outcome(loss, after, proposal, float(delta.norm()), active))
    return multiplier, float(x.norm())


def test_a_learning_rate_that_is_too_small_is_raised():
    multiplier, distance = descend(lr=0.01)
    assert multiplier > 3
    assert distance < 0.1 * (1 - 0.01) ** 200


def test_a_learning_rate_that_is_too_large_is_lowered():
    multiplier, distance = descend(lr=2.02)  # diverges without help
    assert multiplier < 0.999
    assert distance < 1e-3


def test_the_scale_of_the_loss_does_not_matter():
    small, _ = descend(lr=0.01, scale=1.0)
    large, _ = descend(lr=0.01e-6, scale=1e6)
    assert math.isclose(small, large, rel_tol=1e-6)


def test_constrained_steps_teach_nothing():
    assert descend(lr=0.01, active=True)[0] == 1.0
