"""The first step after a resume, and all after it, equal the uninterrupted run bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_networks import mlp, same_bits, take_step, train, values

from hybridkit.errors import UsageError
from hybridkit.optim.base import build_base_optimizer
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.parameter_clusters import cluster_parameters
from hybridkit.registry import registry
from hybridkit.testing.storage import through_checkpoint


def make(model, name="adamw", controller="constant", constraint="l2", clusters=2, max_steps=20):
    base = build_base_optimizer(name, model.named_parameters(), lr=0.01, weight_decay=0.1, momentum=0.9)
    return HybridOptimizer(
        base,
        controller=registry().create("lr_controller", controller),
        constraint=registry().create("constraint", constraint),
        max_steps=max_steps,
        parameter_clusters=cluster_parameters(model.named_parameters(), clusters),
    )


@settings(max_examples=25, deadline=None)
@example(name="muon", controller="aux-nn", constraint="l2", cut=2, watched=False)
@given(
    name=st.sampled_from(["adamw", "sgd"]),
    controller=st.sampled_from(
        ["constant", "cosine", "wsd", "hypergradient", "relative-step", "trust-ratio", "probe", "aux-nn"]
    ),
    constraint=st.sampled_from(["none", "l2", "per-cluster", "per-layer", "spectral"]),
    cut=st.integers(0, 4),
    watched=st.booleans(),
)
def test_a_resumed_run_is_the_uninterrupted_one(name, controller, constraint, cut, watched):
    settings_ = {"name": name, "controller": controller, "constraint": constraint}
    model, twin = mlp(), mlp()
    # Reading the metrics, or not, must make no difference either.
    optimizer = train(
        model, lambda m: make(m, **settings_), cut, (lambda o: o.last_step) if watched else None
    )
    saved = through_checkpoint({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    resumed = make(twin, **settings_)
    for step in range(2):  # whatever it did before is forgotten
        take_step(twin, resumed, 90 + step)
    twin.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.last_step == optimizer.last_step
    for step in range(cut, cut + 4):
        take_step(model, optimizer, step)
        take_step(twin, resumed, step)
        assert same_bits(values(model), values(twin))
        assert optimizer.last_step == resumed.last_step


def test_saving_does_not_disturb_the_run():
    model, twin = mlp(), mlp()
    train(model, lambda m: make(m, controller="aux-nn"), 6, lambda o: o.state_dict())
    train(twin, lambda m: make(m, controller="aux-nn"), 6)
    assert same_bits(values(model), values(twin))


def test_the_state_is_a_torch_optimizers_state():
    model, twin = mlp(), mlp()
    optimizer = train(model, make, 3)
    bare = torch.optim.AdamW(twin.parameters(), lr=0.5)
    bare.param_groups[:] = [{**g, "params": []} for g in optimizer.param_groups]
    twins = dict(zip(model.parameters(), twin.parameters(), strict=True))
    for mine, theirs in zip(bare.param_groups, optimizer.param_groups, strict=True):
        mine["params"] = [twins[p] for p in theirs["params"]]
    bare.load_state_dict(optimizer.state_dict())
    assert bare.param_groups[0]["lr"] == 0.01
    assert bare.state[next(twin.parameters())]["step"] == 3


def test_states_that_do_not_fit():
    model = mlp()
    optimizer = train(model, make, 1)
    with pytest.raises(UsageError, match="not a HybridOptimizer's"):
        optimizer.load_state_dict(optimizer.base.state_dict())
    with pytest.raises(UsageError, match="other parameters or parameter clusters"):
        make(mlp(), clusters=1).load_state_dict(optimizer.state_dict())
