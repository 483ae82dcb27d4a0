"""Base optimizers by name: builders, torch classes, factories."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from small_networks import convnet, mlp, same_bits, take_step, train, values
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.optim.base import build_base_optimizer
from hybridkit.optim.roles import Role, parameter_roles


def build(name, model, options=None, **settings):
    settings = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.8} | settings
    return build_base_optimizer(name, model, options=options, **settings)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "torch.optim:NAdam", "torch.optim:RMSprop"])
def test_weight_decay_is_for_matrices_only(name):
    model = convnet() if name != "muon" else mlp()
    decays = {p: g["weight_decay"] for g in build(name, model).param_groups for p in g["params"]}
    assert set(decays) == set(model.parameters())
    assert all(decay == (0.1 if p.ndim >= 2 else 0.0) for p, decay in decays.items())


def test_momentum_is_beta1_or_momentum():
    assert build("adamw", mlp(), {"beta2": 0.95}).param_groups[0]["betas"] == (0.8, 0.95)
    assert build("sgd", mlp(), {"nesterov": True}).param_groups[0]["momentum"] == 0.8
    assert build("torch.optim:NAdam", mlp(), {"eps": 1e-3}).param_groups[0]["betas"] == (0.8, 0.999)
    assert build("torch.optim:RMSprop", mlp()).param_groups[0]["momentum"] == 0.8


def test_adamw_is_torch_adamw():
    model, twin = mlp(), mlp()
    train(model, lambda m: build("adamw", m), 5)
    matrices = [p for p in twin.parameters() if p.ndim == 2]
    vectors = [p for p in twin.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    train(twin, lambda _: torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.999)), 5)
    for a, b in zip(values(model), values(twin), strict=True):
        torch.testing.assert_close(a, b)


def plain_sgd(params, lr):
    """A factory that knows neither momentum nor weight decay."""
    return torch.optim.SGD(params, lr=lr)


def test_a_factory_gets_what_it_knows():
    optimizer = build("test_base_optimizers:plain_sgd", mlp())
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert len(optimizer.param_groups) == 1


def not_an_optimizer(params, lr):
    return params


def test_errors_say_what_is_wrong():
    with pytest.raises(UsageError, match="did you mean 'adamw'"):
        build("adamm", mlp())
    with pytest.raises(UsageError, match="did you mean 'beta2'"):
        build("adamw", mlp(), {"beta": 0.9})
    with pytest.raises(UsageError, match="did you mean 'nesterov'"):
        build("torch.optim:SGD", mlp(), {"nesterof": True})
    with pytest.raises(UsageError, match="made a list"):
        build("test_base_optimizers:not_an_optimizer", mlp())
    with pytest.raises(UsageError, match="neither a builder"):
        build("math:pi", mlp())
    with pytest.raises(UsageError, match="nothing to train"):
        build("adamw", mlp().requires_grad_(False))


def test_frozen_parameters_stay_out():
    model = mlp()
    model[0].requires_grad_(False)
    held = [p for g in build("adamw", model).param_groups for p in g["params"]]
    assert set(held) == {p for p in model.parameters() if p.requires_grad}


class Named(nn.Module):
    """One of each."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(9, 4)
        self.a, self.conv, self.b = nn.Linear(4, 4), nn.Conv1d(2, 2, 3), nn.Linear(8, 4)
        self.logits = nn.Linear(4, 9)


def muon_takes(optimizer, model):
    held = {p for g in optimizer.param_groups if g["optimizer"] == "muon" for p in g["params"]}
    return {name for name, p in model.named_parameters() if p in held}


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    model = Named()
    assert muon_takes(build("muon", model), model) == {"a.weight", "b.weight"}
    chosen = build("muon", model, {"output_names": "a.*, x*"})
    assert muon_takes(chosen, model) == {"b.weight", "logits.weight"}
    with pytest.raises(UsageError, match="no hidden matrix"):
        build("muon", nn.Linear(3, 3))
    assert muon_takes(build("muon", lone := nn.Linear(3, 3), {"hidden_names": "W*"}), lone) == {"weight"}


class OldRecipe:
    """Knows nothing of roles."""

    def build(self, named_parameters, *, lr, weight_decay, momentum):
        return torch.optim.SGD([p for _, p in named_parameters], lr=lr)


class NewRecipe:
    def build(self, named_parameters, *, lr, weight_decay, momentum, roles=None):
        self.seen.update(roles)
        return torch.optim.SGD([p for _, p in named_parameters], lr=lr)

    seen: ClassVar[dict] = {}


def test_a_builder_gets_roles_where_it_asks_for_them():
    model = mlp()
    assert len(build("test_base_optimizers:OldRecipe", model).param_groups) == 1
    build("test_base_optimizers:NewRecipe", model)
    assert NewRecipe.seen == parameter_roles(model)
    assert NewRecipe.seen["4.weight"] == Role.OUTPUT


def test_the_composite_equals_its_parts():
    model, twin = mlp(), mlp()
    optimizer = train(model, lambda m: build("muon", m), 4)
    named = dict(twin.named_parameters())
    hidden = ["0.weight", "2.weight"]
    muon = torch.optim.Muon(
        [named[n] for n in hidden], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    rest = [(n, p) for n, p in named.items() if n not in hidden]
    adamw = build_base_optimizer("adamw", rest, lr=0.01, weight_decay=0.1, momentum=0.8)
    for step in range(4):
        muon.zero_grad()
        take_step(twin, adamw, step)
        muon.step()
    assert same_bits(values(model), values(twin))
    assert {g["optimizer"] for g in optimizer.param_groups} == {"muon", "adamw"}


def test_the_composite_takes_groups_and_closures():
    optimizer = build("muon", mlp())
    extra = torch.nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    extra.grad = torch.ones(3)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert optimizer.param_groups[-1]["optimizer"] == "adamw"
    assert extra.tolist() == pytest.approx([1 - 0.5 * 0.01 - 0.5] * 3, abs=1e-5)  # AdamW's own decay
