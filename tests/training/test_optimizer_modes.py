"""Optimizers that train other weights than they end with: evaluation sees the latter and disturbs nothing."""

from __future__ import annotations

import pytest
import torch

from hybridkit.training.config import resolve
from hybridkit.training.trainer import Trainer, evaluation_weights

FLAGS = {"task": "digits", "max_steps": 6, "threads": 1, "optimizer": "schedulefree:AdamWScheduleFree"}


@pytest.mark.parametrize("extra", [{}, {"lr_controller": "constant"}])
def test_evaluation_leaves_training_alone(extra):
    watched, left = Trainer.seeded(resolve(**FLAGS, **extra)), Trainer.seeded(resolve(**FLAGS, **extra))
    for _ in range(6):
        watched.step()
        watched.evaluate()
        left.step()
    # lerp there and back again rounds
    for a, b in zip(watched.model.parameters(), left.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    trained = [p.detach().clone() for p in watched.model.parameters()]
    with evaluation_weights(watched.optimizer):
        shown = [p.detach().clone() for p in watched.model.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(trained, shown, strict=True))


def test_an_ordinary_optimizer_has_one_set_of_weights():
    trainer = Trainer.seeded(resolve(task="digits", max_steps=1, threads=1))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with evaluation_weights(trainer.optimizer):
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
