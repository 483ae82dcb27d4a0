"""`hybridkit.hybrid_optimizer` is what `--hybrid` runs, to the bit; the manager is a face over it."""

from __future__ import annotations

import inspect

import pytest
import torch
from small_networks import batch, mlp, same_bits, take_step, train, values

import hybridkit
from hybridkit.ancestor.config import HybridTrainingConfig
from hybridkit.clustering.samplers import make_sampler
from hybridkit.errors import UsageError
from hybridkit.optim.controllers.aux_nn import AuxNN
from hybridkit.optim.controllers.relative_step import RelativeStep
from hybridkit.tasks.data import take
from hybridkit.tasks.resolve import make_model, make_task
from hybridkit.training.config import HYBRID_DEFAULTS, TrainConfig, resolve
from hybridkit.training.trainer import Trainer

STEPS = 12


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("lr", [1e-3, 4e-3])
def test_a_plain_loop_gives_the_trainers_bits(lr, qat):
    flags = {"task": "digits", "hybrid": True, "max_steps": STEPS, "lr": lr, "seed": 5}
    config = resolve(**flags, qat=qat, ternary=qat, ramp=0.0)
    trainer = Trainer.seeded(config)
    while not trainer.done:
        trainer.step()

    torch.manual_seed(5)
    task = make_task("digits", {})
    model = make_model(task, None)
    if qat:
        sample = task.inputs(tuple(part[:1] for part in task.splits().validation))
        hybridkit.prepare_qat(model, example_inputs=sample)
    optimizer = hybridkit.hybrid_optimizer(model, max_steps=STEPS, lr=lr)
    train = task.splits().train
    sampler = make_sampler("shuffle", torch.zeros(len(train[0]), dtype=torch.int64).numpy(), 32, 5)
    for _ in range(STEPS):
        drawn = take(train, next(sampler).indices)
        optimizer.zero_grad()
        loss = task.loss(model(*task.inputs(drawn)), drawn)
        loss.backward()
        optimizer.step()
    assert same_bits(values(model), values(trainer.model))
    ours, theirs = optimizer.last_step, trainer.optimizer.last_step
    assert ours["lr_multiplier"] == theirs["lr_multiplier"]
    assert ours["trust_radius"] == theirs["trust_radius"]


def test_defaults_are_those_of_the_command():
    said = {name: p.default for name, p in inspect.signature(hybridkit.hybrid_optimizer).parameters.items()}
    assert {k: said[k] for k in ("optimizer", "lr_controller", "constraint")} == {
        k: v for k, v in HYBRID_DEFAULTS.items() if k != "clusterer"
    }
    config = TrainConfig()
    for name in ("lr", "weight_decay", "momentum", "seed", "initial_trust_radius"):
        assert said[name] == getattr(config, name)
    assert said["parameter_clusters"] == config.param_clusters


def test_everything_can_be_chosen():
    model = mlp()
    optimizer = hybridkit.hybrid_optimizer(
        model,
        20,
        lr=0.01,
        optimizer="sgd",
        lr_controller="aux-nn",
        constraint="per-cluster",
        options={"lr_controller": {"hidden_size": 3}, "optimizer": {"nesterov": True}},
        parameter_clusters=2,
        seed=7,
    )
    assert optimizer.base.param_groups[0]["nesterov"]
    assert isinstance(optimizer.controller, AuxNN)
    assert (optimizer.controller.options.hidden_size, optimizer.controller.options.seed) == (3, 7)
    assert optimizer.max_steps == 20
    assert set(optimizer.cluster_of.values()) == {0, 1}
    assert len(optimizer.radius.radii) == 2
    take_step(model, optimizer, 0)
    own = torch.optim.SGD(mlp().parameters(), lr=0.1)
    with pytest.raises(UsageError, match="parameter_clusters lacks"):
        hybridkit.hybrid_optimizer(model, optimizer=own)
    with pytest.raises(UsageError, match="no constraint is called 'l3'"):
        hybridkit.hybrid_optimizer(model, constraint="l3")


def test_the_relative_step_is_its_controllers():
    model, options = mlp(), {"lr_controller": {"warmup": 0.2}}
    planned = hybridkit.hybrid_optimizer(model, relative_step=0.02, options=options).controller.options
    assert (planned.relative_step, planned.warmup) == (0.02, 0.2)
    with pytest.raises(UsageError, match="relative_step"):
        hybridkit.hybrid_optimizer(model, relative_step=0.02, lr_controller="cosine")


def test_nothing_around_it_is_the_base_optimizer():
    alone = {"lr_controller": None, "constraint": None}
    results = []
    for own in (False, True):
        model = mlp()
        optimizer = adamw(model) if own else "adamw"
        around = hybridkit.hybrid_optimizer(model, optimizer=optimizer, **alone)
        for step in range(4):
            take_step(model, around, step)
        results.append(values(model))
    twin = mlp()
    train(twin, adamw, 4)
    assert same_bits(results[0], values(twin))
    assert same_bits(results[1], values(twin))


def adamw(model):
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == n], "weight_decay": decay}
        for n, decay in ((2, 1e-5), (1, 0.0))
    ]
    return torch.optim.AdamW(groups, lr=1e-3, fused=True)


def test_the_manager_takes_the_same_steps():
    model, twin = mlp(), mlp()
    manager = hybridkit.create_hybrid_optimizer(HybridTrainingConfig(max_steps=6))
    optimizer = hybridkit.hybrid_optimizer(twin, 6)
    for step in range(6):
        x, y = batch(step)
        manager.optimization_step(model, torch.nn.functional.cross_entropy(model(x), y))
        take_step(twin, optimizer, step)
    assert same_bits(values(model), values(twin))


def controller_of(**changes):
    model = mlp()
    manager = hybridkit.create_hybrid_optimizer(HybridTrainingConfig(max_steps=2, **changes))
    x, y = batch(0)
    manager.optimization_step(model, torch.nn.functional.cross_entropy(model(x), y))
    return manager.optimizer.controller


def test_the_managers_network_is_the_one_that_is_described():
    assert isinstance(controller_of(), RelativeStep)
    described = controller_of(auxiliary_nn_hidden_size=5, auxiliary_nn_learning_rate=0.1)
    assert isinstance(described, AuxNN)
    assert (described.options.hidden_size, described.options.learning_rate) == (5, 0.1)
    off = controller_of(auxiliary_nn_hidden_size=5, use_auxiliary_nn=False)
    assert off.bounds == (1.0, 1.0)


def test_the_manager_says_that_max_steps_is_over(caplog):
    model = mlp()
    manager = hybridkit.create_hybrid_optimizer(HybridTrainingConfig(max_steps=2))
    for step in range(5):
        x, y = batch(step)
        manager.optimization_step(model, torch.nn.functional.cross_entropy(model(x), y))
    assert [r.getMessage() for r in caplog.records if "max_steps is over" in r.getMessage()] == [
        "max_steps is over and the learning rate is 0; give the run's real length"
    ]
