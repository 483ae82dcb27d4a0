"""Hypergradient: formula, the inner product of gradients, and direction on a quadratic."""

from __future__ import annotations

import pytest
import torch

from hybridkit.optim.controllers.hypergradient import Hypergradient
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.protocol import TrainingState


def test_equation_and_bounds():
    controller = Hypergradient(Hypergradient.Options(beta=0.5))
    state = TrainingState(1.0, 1.0, -1, 0.0, 0.0, 0, update_alignment=0.5)
    assert controller.propose(state).lr_multiplier == pytest.approx(1.25)
    for _ in range(50):
        highest = controller.propose(state).lr_multiplier
    assert highest == 10.0
    state.update_alignment = -1.0
    for _ in range(50):
        lowest = controller.propose(state).lr_multiplier
    assert lowest == 0.1


def test_for_sgd_the_alignment_is_the_normalised_product_of_gradients():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = HybridOptimizer(torch.optim.SGD([weight], lr=0.1), controller=Hypergradient())
    gradients = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, 0.5, 2.0])]
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
    expected = torch.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert optimizer.last_step["update_alignment"] == pytest.approx(expected.item(), rel=1e-5)
    assert optimizer.last_step["lr_multiplier"] == pytest.approx(1 + 0.02 * expected.item(), rel=1e-5)


@pytest.mark.parametrize(("lr", "rises"), [(0.01, True), (1.95, False)])
def test_moves_towards_a_better_rate_on_a_quadratic(lr, rises):
    """The best rate of (1/2) w^2 is 1: from far below the multiplier rises, from above it falls."""
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = HybridOptimizer(torch.optim.SGD([weight], lr=lr), controller=Hypergradient())
    for _ in range(20):
        weight.grad = weight.detach().clone()
        optimizer.step()
    assert (optimizer.last_step["lr_multiplier"] > 1.2) == rises
    assert (optimizer.last_step["lr_multiplier"] < 0.8) != rises
