"""HybridOptimizer is an ordinary torch optimizer, and does what its equations say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import convnet, loss_of, mlp, same_bits, take_step, train, values

from hybridkit.errors import HybridkitError, UsageError
from hybridkit.optim.base import build_base_optimizer
from hybridkit.optim.constraints.none import Unconstrained
from hybridkit.optim.constraints.per_cluster import PerCluster
from hybridkit.optim.controllers.schedules import Constant, Cosine
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.parameter_clusters import cluster_parameters
from hybridkit.optim.protocol import Proposal
from hybridkit.registry import registry

CONSTRAINTS = ["l2", "per-cluster", "per-layer", "spectral"]
CONTROLLERS = ["constant", "cosine", "wsd", "hypergradient", "relative-step", "aux-nn"]
BASES = ["adamw", "sgd", "muon", "torch.optim:Adagrad"]


def base_of(model, name="adamw", lr=0.01):
    return build_base_optimizer(name, model.named_parameters(), lr=lr, weight_decay=0.1, momentum=0.9)


def constraint(name):
    return registry().create("constraint", name)


class Scripted(Constant):
    """Proposes what it is told, and remembers what it hears."""

    bounds = (0.0, 100.0)

    def __init__(self, *multipliers, radius=None, per_cluster=False):
        self.multipliers, self.radius, self.per_cluster = list(multipliers), radius, per_cluster
        self.states, self.outcomes = [], []

    def propose(self, state):
        self.states.append(state)
        return Proposal(self.multipliers[state.step_number % len(self.multipliers)], self.radius)

    def feedback(self, state, outcome):
        self.outcomes.append((state, outcome))


# --- transparent by default


@pytest.mark.parametrize("make", [mlp, convnet])
@pytest.mark.parametrize("name", BASES)
def test_the_default_wrapper_changes_no_bit(name, make):
    if name == "muon" and make is convnet:
        pytest.skip("no hidden matrix")
    model, twin = make(), make()
    train(model, lambda m: HybridOptimizer(base_of(m, name), constraint=Unconstrained()), 6)
    train(twin, lambda m: base_of(m, name), 6)
    assert same_bits(values(model), values(twin))


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(CONSTRAINTS),
    name=st.sampled_from(["adamw", "sgd"]),
    lr=st.sampled_from([1e-4, 0.05]),
)
def test_an_inactive_constraint_changes_no_bit(kind, name, lr):
    model, twin = mlp(), mlp()

    def check(optimizer):
        assert not optimizer.last_step["constraint_active"]

    train(
        model,
        lambda m: HybridOptimizer(
            base_of(m, name, lr), constraint=constraint(kind), initial_radius=1e6, adapt_radius=False
        ),
        4,
        check,
    )
    train(twin, lambda m: base_of(m, name, lr), 4)
    assert same_bits(values(model), values(twin))


# --- the bound


def measure(kind, before, after, clusters):
    """The size of a change as the constraint measures it, per ball, in float64."""
    changes = [a.double() - b.double() for a, b in zip(after, before, strict=True)]
    if kind == "l2":
        return [torch.cat([c.flatten() for c in changes]).norm().item()]
    if kind == "per-cluster":
        count = max(clusters) + 1
        return [
            torch.cat([c.flatten() for c, k in zip(changes, clusters, strict=True) if k == i]).norm().item()
            for i in range(count)
        ]
    if kind == "spectral":
        return [max((torch.linalg.matrix_norm(c, 2) if c.ndim > 1 else c.norm()).item() for c in changes)]
    rms = (sum(b.double().square().sum() for b in before) / sum(b.numel() for b in before)).sqrt()
    sizes = [torch.maximum(b.double().norm(), 0.5 * rms * b.numel() ** 0.5) for b in before]
    return [max((c.norm() / s).item() for c, s in zip(changes, sizes, strict=True))]


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(CONSTRAINTS),
    name=st.sampled_from(["adamw", "sgd", "torch.optim:Adagrad"]),
    controller=st.sampled_from(CONTROLLERS),
    radius=st.sampled_from([1e-7, 1e-4, 0.01, 1.0]),
    adapt=st.booleans(),
)
def test_the_bound_holds_after_every_step(kind, name, controller, radius, adapt):
    """For the stored parameters, weight decay included, whatever base, controller and radius."""
    model = mlp()
    clusters = cluster_parameters(model.named_parameters(), 2)
    optimizer = HybridOptimizer(
        base_of(model, name, lr=0.05),
        controller=registry().create("lr_controller", controller),
        constraint=constraint(kind),
        initial_radius=radius,
        adapt_radius=adapt,
        max_steps=5,
        parameter_clusters=clusters,
    )
    for step in range(5):
        before, rule = values(model), list(optimizer.radius.radii)
        take_step(model, optimizer, step)
        used = optimizer.last_step["trust_radius"]
        allowed = [r * used / math.hypot(*rule) for r in rule]
        sizes = measure(kind, before, values(model), list(clusters.values()))
        assert all(size <= bound * (1 + 1e-6) for size, bound in zip(sizes, allowed, strict=True))


def test_the_bound_holds_for_large_parameters_and_a_tiny_radius():
    """Rounding W + delta to fp32 must not push the stored change out of the ball."""
    weight = torch.nn.Parameter(1000 * torch.randn(5000, generator=torch.Generator().manual_seed(0)))
    optimizer = HybridOptimizer(
        torch.optim.SGD([weight], lr=1.0),
        constraint=constraint("l2"),
        initial_radius=0.02,
        adapt_radius=False,
    )
    before = weight.detach().clone()
    weight.grad = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    moved = (weight.detach().double() - before.double()).norm().item()
    assert 0.0 < moved <= 0.02


def test_a_shortened_step_keeps_its_direction():
    model, twin = mlp(), mlp()
    start = values(model)
    take_step(twin, base_of(twin), 0)
    optimizer = HybridOptimizer(base_of(model), constraint=constraint("l2"), initial_radius=0.003)
    take_step(model, optimizer, 0)
    full = torch.cat([(b - a).flatten() for a, b in zip(start, values(twin), strict=True)])
    short = torch.cat([(b - a).flatten() for a, b in zip(start, values(model), strict=True)])
    assert torch.cosine_similarity(full, short, dim=0) > 0.9999
    assert optimizer.last_step["unconstrained_norm"] == pytest.approx(full.norm().item(), rel=1e-4)
    assert optimizer.last_step["update_magnitude"] == pytest.approx(0.003, rel=1e-3)


def test_weight_decay_is_part_of_the_change():
    weight = torch.nn.Parameter(torch.full((4, 4), 2.0))
    base = torch.optim.AdamW([weight], lr=0.1, weight_decay=1.0)
    optimizer = HybridOptimizer(base, constraint=constraint("l2"), initial_radius=1e-3)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert optimizer.last_step["unconstrained_norm"] == pytest.approx(0.1 * 8)
    assert (torch.full((4, 4), 2.0) - weight).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_low_precision_parameters():
    model = mlp(dtype=torch.bfloat16)
    optimizer = HybridOptimizer(base_of(model), constraint=constraint("l2"), initial_radius=0.05)
    for step in range(3):
        before = values(model)
        take_step(model, optimizer, step)
        moved = sum(
            (a.double() - b.double()).square().sum() for a, b in zip(values(model), before, strict=True)
        )
        assert moved.sqrt() <= optimizer.last_step["trust_radius"]
    assert model[0].weight.dtype == torch.bfloat16


def test_double_precision_parameters():
    model = mlp(dtype=torch.float64)
    optimizer = train(model, lambda m: HybridOptimizer(base_of(m), constraint=constraint("l2")), 1)
    assert optimizer.last_step["constraint_active"]


# --- the multiplier


@settings(max_examples=10, deadline=None)
@given(multiplier=st.floats(0.0, 10.0), name=st.sampled_from(["adamw", "sgd"]))
def test_the_multiplier_acts_for_one_step_and_is_taken_back(multiplier, name):
    model, twin = mlp(), mlp()
    optimizer = HybridOptimizer(base_of(model, name), controller=Scripted(multiplier, 1.0))
    other = base_of(twin, name)
    rates = [g["lr"] for g in optimizer.param_groups]
    for step in range(4):
        take_step(model, optimizer, step)
        assert all(g["lr"] is r for g, r in zip(optimizer.param_groups, rates, strict=True))
        for group in other.param_groups:
            group["lr"] = 0.01 * (multiplier if step % 2 == 0 else 1.0)
        take_step(twin, other, step)
    assert same_bits(values(model), values(twin))


def test_torch_schedulers_are_not_compounded():
    model, twin = mlp(), mlp()
    optimizer, other = HybridOptimizer(base_of(model), controller=Scripted(2.0)), base_of(twin, lr=0.02)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (optimizer, other)]
    for step in range(4):
        take_step(model, optimizer, step)
        take_step(twin, other, step)
        assert optimizer.last_step["learning_rate"] == pytest.approx(0.02 * 0.5**step)
        for scheduler in schedulers:
            scheduler.step()
    assert same_bits(values(model), values(twin))


def test_a_scheduler_over_the_base_optimizer_works_too():
    model = mlp()
    base = base_of(model)
    scheduler = torch.optim.lr_scheduler.StepLR(base, 1, 0.1)
    optimizer = HybridOptimizer(base)
    take_step(model, optimizer, 0)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_an_error_in_the_base_step_takes_the_multiplier_back():
    model = mlp()
    base = base_of(model)
    optimizer = HybridOptimizer(base, controller=Scripted(3.0))
    base.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        take_step(model, optimizer, 0)
    assert base.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("proposed", [-1.0, 101.0, math.nan, math.inf])
def test_a_multiplier_out_of_bounds_is_an_error(proposed):
    model = mlp()
    before = values(model)
    with pytest.raises(HybridkitError, match="bounds are"):
        take_step(model, HybridOptimizer(base_of(model), controller=Scripted(proposed)), 0)
    assert same_bits(values(model), before)


def test_a_proposed_radius_is_used_for_the_step():
    model = mlp()
    optimizer = HybridOptimizer(
        base_of(model),
        controller=Scripted(1.0, radius=0.002),
        constraint=constraint("l2"),
        initial_radius=0.01,
    )
    take_step(model, optimizer, 0)
    assert optimizer.last_step["trust_radius"] == 0.002
    assert optimizer.last_step["update_magnitude"] == pytest.approx(0.002, rel=1e-3)
    assert optimizer.radius.total > 0.01  # the rule went its own way


# --- clusters of parameters


def test_each_cluster_has_its_own_multiplier():
    model, twin = mlp(), mlp()
    clusters = {p: int(name.startswith("4")) for name, p in model.named_parameters()}
    optimizer = HybridOptimizer(
        base_of(model), controller=Scripted((0.5, 2.0), per_cluster=True), parameter_clusters=clusters
    )
    assert len(optimizer.param_groups) == 4  # matrices and vectors of two clusters
    other = base_of(twin)
    other.param_groups[:] = [
        {**g, "lr": 0.02 if last else 0.005, "params": [p for p in g["params"] if (p.shape[0] == 3) == last]}
        for g in other.param_groups
        for last in (False, True)
    ]
    for step in range(3):
        take_step(model, optimizer, step)
        take_step(twin, other, step)
    assert same_bits(values(model), values(twin))
    assert optimizer.last_step["lr_multiplier_1"] == 2.0


def test_gradients_are_reported_per_cluster():
    model = mlp()
    controller = Scripted(1.0)
    clusters = {p: int(name.startswith("4")) for name, p in model.named_parameters()}
    take_step(model, HybridOptimizer(base_of(model), controller=controller, parameter_clusters=clusters), 0)
    parts = [
        sum(p.grad.square().sum() for p in model.parameters() if clusters[p] == c).sqrt().item()
        for c in (0, 1)
    ]
    assert controller.states[0].parameter_gradients == pytest.approx(tuple(parts))
    assert controller.states[0].gradient_magnitude == pytest.approx(math.hypot(*parts))


def test_each_cluster_has_its_own_radius():
    model = mlp()
    clusters = {p: int(name.startswith("4")) for name, p in model.named_parameters()}
    optimizer = HybridOptimizer(base_of(model), constraint=PerCluster(), parameter_clusters=clusters)
    for step in range(30):
        take_step(model, optimizer, step)
    small, large = sorted(optimizer.radius.radii)
    assert large > 1.5 * small
    assert optimizer.last_step["trust_radius"] == pytest.approx(math.hypot(small, large), rel=0.2)


def test_clusters_that_miss_a_parameter_are_an_error():
    model = mlp()
    with pytest.raises(UsageError, match="lacks 5 of the optimizer's 6"):
        HybridOptimizer(base_of(model), parameter_clusters={model[0].weight: 0})


def test_a_tuple_without_clusters_is_an_error():
    model = mlp()
    with pytest.raises(HybridkitError, match="without that many clusters"):
        take_step(model, HybridOptimizer(base_of(model), controller=Scripted((1.0, 2.0))), 0)


# --- what the controller sees


def test_feedback_tells_what_the_step_before_did():
    model = mlp()
    controller = Scripted(1.0)
    optimizer = HybridOptimizer(
        base_of(model), controller=controller, constraint=constraint("l2"), max_steps=9
    )
    losses, metrics = [], []
    for step in range(3):
        losses.append(take_step(model, optimizer, step))
        metrics.append(optimizer.last_step)
    assert [s.step_number for s in controller.states] == [0, 1, 2]
    assert [s.max_steps for s in controller.states] == [9] * 3
    assert [s.current_loss for s in controller.states] == pytest.approx(losses)
    for step, (state, outcome) in enumerate(controller.outcomes):
        assert state is controller.states[step]
        assert (outcome.loss_before, outcome.loss_after) == pytest.approx((losses[step], losses[step + 1]))
        assert outcome.update_magnitude == metrics[step]["update_magnitude"]
        assert outcome.constraint_active == metrics[step]["constraint_active"]


def test_without_observed_losses_everything_else_works():
    model = mlp()
    controller = Scripted(1.0)
    optimizer = HybridOptimizer(base_of(model), controller=controller, constraint=constraint("l2"))
    for step in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model, step))
        optimizer.step()
    assert all(math.isnan(s.current_loss) for s in controller.states)
    assert controller.outcomes == []
    assert optimizer.last_step["gradient_magnitude"] > 0


def test_gradient_accumulation_averages_the_losses():
    model = mlp()
    controller = Scripted(1.0)
    optimizer = HybridOptimizer(base_of(model), controller=controller)
    losses = [loss_of(model, step) for step in range(4)]
    for cluster, loss in enumerate(losses):
        optimizer.observe(loss, cluster_id=cluster // 4)
        torch.autograd.backward(loss / 4)
    optimizer.step()
    assert controller.states[0].current_loss == pytest.approx(sum(x.item() for x in losses) / 4)
    assert controller.states[0].cluster_id == 0
    optimizer.observe(1.0, cluster_id=2)
    optimizer.observe(2.0, cluster_id=3, histogram=(0.5, 0.5))
    optimizer.step()
    assert (controller.states[1].cluster_id, controller.states[1].cluster_histogram) == (-1, (0.5, 0.5))


# --- ordinary torch behaviour


def test_closures():
    model, twin = mlp(), mlp()
    optimizer, other = HybridOptimizer(base_of(model), constraint=Unconstrained()), base_of(twin)

    def closure_of(network, opt):
        def closure():
            opt.zero_grad()
            loss = loss_of(network, 0)
            torch.autograd.backward(loss)
            return loss

        return closure

    for _ in range(3):
        assert optimizer.step(closure_of(model, optimizer)) == other.step(closure_of(twin, other))
    assert same_bits(values(model), values(twin))
    assert optimizer.last_step["loss"] > 0


def test_a_loss_that_was_observed_goes_before_the_closures():
    model = mlp()
    optimizer = HybridOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))

    def closure(loss=3.0):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        return loss

    optimizer.step(closure)
    assert optimizer.last_step["loss"] == 3
    optimizer.observe(1.0)
    optimizer.observe(2.0)
    assert optimizer.step(closure) == 3
    assert optimizer.last_step["loss"] == 1.5
    assert optimizer.step(lambda: closure(None)) is None  # a trainer's, where one steps by hand
    assert math.isnan(optimizer.last_step["loss"])


def test_a_base_that_evaluates_its_closure_many_times():
    model, twin = mlp(), mlp()

    def run(network, opt, count):
        def closure():
            count.append(1)
            opt.zero_grad()
            loss = loss_of(network, 0)
            torch.autograd.backward(loss)
            return loss

        for _ in range(2):
            opt.step(closure)

    wrapped, bare = [], []
    run(model, HybridOptimizer(torch.optim.LBFGS(model.parameters(), max_iter=5)), wrapped)
    run(twin, torch.optim.LBFGS(twin.parameters(), max_iter=5), bare)
    assert len(wrapped) == len(bare) > 4
    assert same_bits(values(model), values(twin))


def test_gradient_scaling_skips_a_step_without_a_trace():
    model, twin = mlp(), mlp()
    controllers = [Scripted(1.0), Scripted(1.0)]
    optimizers = [
        HybridOptimizer(base_of(m), controller=c, constraint=constraint("l2"))
        for m, c in zip((model, twin), controllers, strict=True)
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, overflow in enumerate([False, True, False]):
        optimizers[0].zero_grad()
        loss = loss_of(model, step)
        optimizers[0].observe(loss)
        torch.autograd.backward(scaler.scale(loss))
        if overflow:
            model[0].weight.grad[0, 0] = math.inf
        scaler.step(optimizers[0])
        scaler.update()
    for step in (0, 2):
        take_step(twin, optimizers[1], step)
    for a, b in zip(values(model), values(twin), strict=True):
        torch.testing.assert_close(a, b)
    assert optimizers[0].step_number == 2
    assert [s.gradient_magnitude for s in controllers[0].states] == pytest.approx(
        [s.gradient_magnitude for s in controllers[1].states], rel=1e-5
    )


def test_parameters_without_gradient_stay():
    model = mlp()
    optimizer = HybridOptimizer(base_of(model), constraint=constraint("per-layer"))
    loss = loss_of(model, 0)
    torch.autograd.backward(loss)
    model[0].weight.grad = None
    before = model[0].weight.detach().clone()
    optimizer.observe(loss)
    optimizer.step()
    assert same_bits([model[0].weight.detach()], [before])


def test_a_step_without_any_gradient_does_nothing():
    model = mlp()
    optimizer = HybridOptimizer(base_of(model), constraint=constraint("l2"))
    before = values(model)
    optimizer.step()
    assert same_bits(values(model), before)
    assert optimizer.last_step == {}


def test_groups_can_be_added():
    model = mlp()
    optimizer = HybridOptimizer(base_of(model), constraint=constraint("per-cluster"))
    take_step(model, optimizer, 0)
    extra = torch.nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    for step in (1, 2):
        torch.autograd.backward(loss_of(model, step) + extra.sum())
        optimizer.step()
    assert optimizer.param_groups is optimizer.base.param_groups
    assert extra in optimizer.state


def test_hooks_and_representation():
    model = mlp()
    optimizer = HybridOptimizer(base_of(model))
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    take_step(model, optimizer, 0)
    assert seen == ["after"]
    assert "lr: 0.01" in repr(optimizer)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing(bad, where):
    model, twin = mlp(), mlp()

    def make(m):
        controller = registry().create("lr_controller", "aux-nn")
        return HybridOptimizer(base_of(m), controller=controller, constraint=constraint("l2"), max_steps=9)

    optimizer, other = train(model, make, 2), train(twin, make, 2)
    before = values(model)
    optimizer.zero_grad()
    loss = loss_of(model, 7)
    optimizer.observe(bad if where == "loss" else loss)
    torch.autograd.backward(loss)
    if where == "gradient":
        model[0].weight.grad[0, 0] = bad
    with pytest.raises(HybridkitError, match="nothing was updated"):
        optimizer.step()
    assert same_bits(values(model), before)
    for step in (2, 3):  # and the controller has not been poisoned
        take_step(model, optimizer, step)
        take_step(twin, other, step)
    assert same_bits(values(model), values(twin))


def test_bad_input():
    model = mlp()
    base = base_of(model)
    with pytest.raises(UsageError, match="one number"):
        HybridOptimizer(base).observe(torch.ones(2))
    with pytest.raises(UsageError, match="positive"):
        HybridOptimizer(base, initial_radius=0.0)
    with pytest.raises(UsageError, match="max_steps"):
        take_step(model, HybridOptimizer(base, controller=Cosine()), 0)
    for group in base.param_groups:
        del group["lr"]
    with pytest.raises(UsageError, match="without 'lr'"):
        HybridOptimizer(base)


@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_path_of_other_devices_takes_the_same_steps(kind, name, monkeypatch):
    """On a CPU the projection looks at the flags; elsewhere it must not, and computes the same."""

    def run():
        model = mlp()
        train(model, lambda m: HybridOptimizer(base_of(m, name), constraint=constraint(kind)), 8)
        return values(model)

    looking = run()
    monkeypatch.setattr("hybridkit.optim.snapshot.may_look", lambda tensor: False)
    assert same_bits(looking, run())


@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize("controller", ["aux-nn", "hypergradient"])
def test_one_synchronisation_per_step(kind, controller, monkeypatch):
    """Nothing is read from the device but once: every way of reading a tensor's value is counted."""
    monkeypatch.setattr("hybridkit.optim.snapshot.may_look", lambda tensor: False)
    model = mlp()
    optimizer = HybridOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True),
        controller=registry().create("lr_controller", controller),
        constraint=constraint(kind),
        max_steps=5,
        parameter_clusters=cluster_parameters(model.named_parameters(), 2),
    )
    take_step(model, optimizer, 0)
    optimizer.zero_grad()
    loss = loss_of(model, 1)
    torch.autograd.backward(loss)
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, name=name, **kwargs):
            reads.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    optimizer.observe(loss)
    optimizer.step()
    assert reads == ["tolist"]
