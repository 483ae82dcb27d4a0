"""What every base optimizer promises."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.optim import Optimizer

from hybridkit.optim.optimizers.builder import OptimizerBuilder
from hybridkit.testing.storage import through_checkpoint


class OptimizerContract(ABC):
    """`make` returns a builder; `lr` is a learning rate with which 150 steps solve a small regression."""

    lr = 0.02

    @abstractmethod
    def make(self) -> OptimizerBuilder:
        """An object with `build(named_parameters, lr=, weight_decay=, momentum=[, roles=None])`."""

    def test_builds_a_torch_optimizer_over_every_parameter(self) -> None:
        model = small_model()
        optimizer = self._build(model)
        assert isinstance(optimizer, Optimizer)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in model.parameters()}
        assert len(held) == len({id(p) for p in held})
        assert all(group["lr"] == self.lr for group in optimizer.param_groups)

    def test_roles_may_be_known_or_not(self) -> None:
        asked = inspect.signature(self.make().build).parameters.get("roles")
        assert asked is None or asked.default is None, "build takes roles=None where no model is at hand"

    def test_reduces_the_loss(self) -> None:
        model = small_model()
        optimizer = self._build(model)
        losses = [train_step(model, optimizer, step=0) for _ in range(150)]
        assert losses[-1] < 0.5 * losses[0], f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"

    def test_a_learning_rate_of_zero_moves_nothing(self) -> None:
        model = small_model()
        optimizer = self._build(model)
        train_step(model, optimizer, step=0)
        before = [p.detach().clone() for p in model.parameters()]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        train_step(model, optimizer, step=1)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    def test_printing_nothing(self, capsys) -> None:  # type: ignore[no-untyped-def]
        model = small_model()
        train_step(model, self._build(model, weight_decay=0.1), step=0)
        assert capsys.readouterr().out == "", "stdout belongs to the command's own output"

    def test_a_resumed_run_takes_the_same_steps(self) -> None:
        model = small_model()
        optimizer = self._build(model, weight_decay=0.01)
        for step in range(5):
            train_step(model, optimizer, step)
        restored = small_model()
        restored.load_state_dict(through_checkpoint(model.state_dict()))
        resumed = self._build(restored, weight_decay=0.01)
        resumed.load_state_dict(through_checkpoint(optimizer.state_dict()))
        for step in range(5, 9):
            assert train_step(restored, resumed, step) == train_step(model, optimizer, step)
        for a, b in zip(model.parameters(), restored.parameters(), strict=True):
            assert torch.equal(a, b)

    def _build(self, model: nn.Module, weight_decay: float = 0.0) -> Optimizer:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        return self.make().build(named, lr=self.lr, weight_decay=weight_decay, momentum=0.9)


def small_model() -> nn.Module:
    """Matrices, vectors and a convolution kernel, the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 3))


def train_step(model: nn.Module, optimizer: Optimizer, step: int) -> float:
    """One step of a regression whose batch depends on `step` alone; returns the loss before it."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 1, 8, generator=generator)
    target = torch.stack([x.sum((1, 2)) / 8, x[:, 0, 0], x[:, 0, -1]], dim=1)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), target)
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()
