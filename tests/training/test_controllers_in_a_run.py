"""What a run says about its controller: a stuck learner, a schedule at rest, one that leaves its bounds."""

from __future__ import annotations

import pytest
import torch

from hybridkit.errors import HybridkitError
from hybridkit.optim.controllers.hypergradient import Hypergradient
from hybridkit.optim.controllers.relative_step import RelativeStep
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.protocol import Proposal
from hybridkit.training.config import resolve
from hybridkit.training.events import Warned
from hybridkit.training.loop import train
from hybridkit.training.trainer import DivergedError, Trainer
from hybridkit.training.watch import PATIENCE, watch_over


class Silent:
    """A controller from before `learns` and `per_cluster` were asked for, which rests at 1."""

    bounds = (0.5, 2.0)
    uses_update_alignment = False

    def propose(self, state):
        return Proposal(1.0)

    def feedback(self, state, outcome):
        self.told = outcome

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Stuck(Silent):
    learns = True


class Escaping(Silent):
    def propose(self, state):
        return Proposal(3.0)


class Announcing:
    """An l2 ball from before `per_cluster` was asked for."""

    def bind(self, parameters, clusters):
        self.bound = list(clusters)

    def apply(self, updates, parameters, radius):
        from hybridkit.optim.constraints.l2 import L2Ball

        return L2Ball().apply(updates, parameters, radius)


HERE = "test_controllers_in_a_run"
STEPS = PATIENCE + 10


@pytest.mark.parametrize(
    ("controller", "warnings"),
    [("relative-step", 0), ("constant", 0), (f"{HERE}:Silent", 0), (f"{HERE}:Stuck", 1)],
)
def test_only_a_controller_that_learns_can_be_stuck(controller, warnings, tmp_path):
    said = []
    # a plan without warm-up and decay rests, too
    options = {"lr_controller": {"warmup": 0.0, "decay": 0.0}} if controller == "relative-step" else {}
    config = resolve(task="digits", hybrid=True, lr_controller=controller, max_steps=STEPS, options=options)
    train(config, run_dir=tmp_path, on_event=lambda e: said.append(e) if isinstance(e, Warned) else None)
    assert len([w for w in said if "has not moved" in w.message]) == warnings


def test_who_is_watched():
    parameter = torch.nn.Parameter(torch.ones(2))

    def around(controller):
        return HybridOptimizer(torch.optim.SGD([parameter], lr=0.1), controller=controller)

    assert watch_over(around(Hypergradient())).bounds == Hypergradient.bounds
    assert watch_over(around(RelativeStep())) is None
    assert watch_over(torch.optim.SGD([parameter], lr=0.1)) is None


def test_a_controller_that_leaves_its_bounds_is_not_a_gradient_that_is_not_finite():
    trainer = Trainer.seeded(
        resolve(task="digits", hybrid=True, lr_controller=f"{HERE}:Escaping", max_steps=2)
    )
    with pytest.raises(HybridkitError, match=r"Escaping proposed .* bounds are 0\.5 to 2\.0") as caught:
        trainer.step()
    assert not isinstance(caught.value, DivergedError)


def test_a_gradient_that_is_not_finite_is():
    trainer = Trainer.seeded(resolve(task="digits", hybrid=True, max_steps=2))
    parameter = next(trainer.model.parameters())
    parameter.register_hook(lambda gradient: gradient * torch.inf)
    before = parameter.detach().clone()
    with pytest.raises(DivergedError, match="the gradient is not finite at step 1"):
        trainer.step()
    assert torch.equal(parameter, before)


def test_a_constraint_that_announces_nothing_gets_one_radius():
    config = resolve(task="digits", hybrid=True, constraint=f"{HERE}:Announcing", max_steps=2)
    old, new = Trainer.seeded(config), Trainer.seeded(resolve(task="digits", hybrid=True, max_steps=2))
    for trainer in (old, new):
        torch.manual_seed(0)
        trainer.step()
        trainer.step()
    assert old.optimizer.last_step == new.optimizer.last_step
