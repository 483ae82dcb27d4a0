"""HybridOptimizationManager: the step, its gradients, its summary, its batches."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from small_networks import convnet, loss_of, mlp, same_bits, values

from hybridkit.ancestor.config import HybridTrainingConfig, get_default_config
from hybridkit.ancestor.manager import METRICS, HybridOptimizationManager, create_hybrid_optimizer
from hybridkit.errors import HybridkitError, UsageError
from hybridkit.optim.base import build_base_optimizer
from hybridkit.optim.hybrid import HybridOptimizer

PLAIN = {"use_auxiliary_nn": False, "use_trust_region": False, "use_clustering": False}


def step(manager, model, number=0, gradients=None, **rest):
    return manager.optimization_step(model, loss_of(model, number), gradients, **rest)


@pytest.mark.parametrize("make", [mlp, convnet])
def test_one_call_updates_every_parameter(make):
    model = make()
    before = values(model)
    metrics = step(create_hybrid_optimizer(), model)
    assert list(metrics) == list(METRICS)
    assert all(not torch.equal(a, b) for a, b in zip(before, values(model), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_it_trains():
    model = mlp()
    manager = HybridOptimizationManager(HybridTrainingConfig(base_learning_rate=0.02, max_steps=120))
    losses = [step(manager, model, i)["loss"] for i in range(120)]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    summary = manager.get_summary()
    history = summary["metrics_history"]
    assert summary["total_steps"] == len(history) == 120
    assert summary["final_loss"] == losses[-1]
    assert summary["trust_radius"] == history[-1]["trust_radius"]
    assert summary["avg_lr_multiplier"] == pytest.approx(sum(m["lr_multiplier"] for m in history) / 120)
    assert summary["constraint_activation_rate"] == sum(m["constraint_active"] for m in history) / 120
    assert 0 < summary["constraint_activation_rate"] < 0.7
    assert 0 < summary["quantization_error"] < 1


def test_the_summary_before_the_first_step():
    summary = HybridOptimizationManager().get_summary()
    assert math.isnan(summary.pop("final_loss"))
    assert summary == {
        "metrics_history": [],
        "trust_radius": 0.01,
        "total_steps": 0,
        "avg_lr_multiplier": 1.0,
        "constraint_activation_rate": 0.0,
        "quantization_error": None,
    }


# --- the forms of gradients


def gradients_of(model):
    return list(torch.autograd.grad(loss_of(model, 0), list(model.parameters())))


def expected():
    model = mlp()
    step(HybridOptimizationManager(), model)
    return values(model)


FORMS = {
    "sequence": lambda m: gradients_of(m),
    "tuple": lambda m: tuple(gradients_of(m)),
    "mapping": lambda m: dict(zip(dict(m.named_parameters()), gradients_of(m), strict=True)),
    "flat": lambda m: torch.cat([g.flatten() for g in gradients_of(m)]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_step(form):
    model = mlp()
    step(HybridOptimizationManager(), model, gradients=FORMS[form](model))
    assert same_bits(values(model), expected())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_given_gradients_win_over_what_is_there(form):
    model = mlp()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    step(HybridOptimizationManager(), model, gradients=FORMS[form](model))
    assert same_bits(values(model), expected())


@pytest.mark.parametrize("statistic", [None, torch.tensor(3.0), torch.tensor([3.0])])
def test_the_callers_own_gradients_drive_and_stay(statistic):
    model = mlp()
    loss = loss_of(model, 0)
    torch.autograd.backward(loss)
    own = [p.grad for p in model.parameters()]
    HybridOptimizationManager().optimization_step(model, loss.detach(), statistic)
    assert same_bits(values(model), expected())
    assert all(p.grad is g for p, g in zip(model.parameters(), own, strict=True))


def test_a_statistic_without_gradients_calls_backward():
    model = mlp()
    step(HybridOptimizationManager(), model, gradients=torch.tensor(3.0))
    assert same_bits(values(model), expected())


def test_the_flat_gradient_of_a_one_parameter_model_is_its_gradient():
    model = torch.nn.Linear(1, 1, bias=False)
    metrics = HybridOptimizationManager().optimization_step(model, 1.0, torch.tensor([5.0]))
    assert metrics["gradient_magnitude"] == 5.0


@pytest.mark.parametrize(
    "gradients",
    [
        torch.ones(7),
        torch.ones(2, 2),
        [torch.ones(3)],
        {"nothing": torch.ones(3)},
        [None] * 6,
        "text",
        3.0,
        [torch.ones(1)] * 6,
    ],
)
def test_anything_else_is_a_value_error_and_changes_nothing(gradients):
    model = mlp()
    before = values(model)
    with pytest.raises(ValueError, match="gradient"):
        step(HybridOptimizationManager(), model, gradients=gradients)
    assert same_bits(values(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_no_gradient_and_no_graph_is_an_error():
    with pytest.raises(UsageError, match=r"call loss.backward\(\)"):
        HybridOptimizationManager().optimization_step(mlp(), 1.0)


def test_what_is_not_finite_is_an_error_and_leaves_no_gradient():
    model = mlp()
    manager = HybridOptimizationManager()
    with pytest.raises(HybridkitError, match="nothing was updated"):
        manager.optimization_step(model, loss_of(model, 0) * math.nan)
    assert all(p.grad is None for p in model.parameters())
    assert manager.get_summary()["total_steps"] == 0


# --- switches and settings


def test_everything_off_is_the_base_optimizer():
    model, twin = mlp(), mlp()
    manager = HybridOptimizationManager(HybridTrainingConfig(**PLAIN, use_quantization=False, momentum=0.8))
    base = build_base_optimizer("steepest", twin, lr=1e-3, weight_decay=1e-5, momentum=0.8)
    for i in range(5):
        metrics = step(manager, model, i)
        base.zero_grad()
        torch.autograd.backward(loss_of(twin, i))
        base.step()
        assert (metrics["lr_multiplier"], metrics["constraint_active"]) == (1.0, False)
        assert metrics["update_magnitude"] > 0
    assert same_bits(values(model), values(twin))
    assert manager.get_summary()["quantization_error"] is None


@pytest.mark.parametrize("switch", ["use_auxiliary_nn", "use_trust_region"])
def test_each_switch_does_something(switch):
    def run(config):
        model = mlp()
        manager = HybridOptimizationManager(config)
        for i in range(3):
            step(manager, model, i)
        return values(model)

    assert not same_bits(run(get_default_config()), run(HybridTrainingConfig(**{switch: False})))


def test_a_fixed_radius():
    manager = HybridOptimizationManager(
        HybridTrainingConfig(
            trust_radius_adaptation=False, use_auxiliary_nn=False, initial_trust_radius=0.004
        )
    )
    model = mlp()
    assert [step(manager, model, i)["trust_radius"] for i in range(4)] == [0.004] * 4


def test_base_lr_and_step():
    manager = HybridOptimizationManager(HybridTrainingConfig(**PLAIN))
    model = mlp()
    assert step(manager, model)["learning_rate"] == 1e-3
    assert step(manager, model, base_lr=0.5)["learning_rate"] == 0.5
    assert step(manager, model)["learning_rate"] == 0.5
    step(manager, model, 1)
    manager.optimization_step(model, loss_of(model, 2), step=700)
    assert manager.optimizer.step_number == 701


def test_a_given_optimizer_is_wrapped():
    model = mlp()
    base = torch.optim.SGD(model.parameters(), lr=0.25)
    manager = HybridOptimizationManager(HybridTrainingConfig(**PLAIN), base)
    assert step(manager, model)["learning_rate"] == 0.25
    assert manager.optimizer.base is base
    hybrid = HybridOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), measure_updates=True)
    manager = HybridOptimizationManager(optimizer=hybrid)
    step(manager, model)
    assert manager.optimizer is hybrid


def test_an_optimizer_that_misses_parameters_is_an_error():
    model = mlp()
    with pytest.raises(UsageError, match=r"lacks 4 parameters of the model, '2.weight' first"):
        step(HybridOptimizationManager(optimizer=torch.optim.SGD(model[0].parameters(), lr=0.1)), model)


def test_one_manager_steps_one_model():
    manager = HybridOptimizationManager()
    step(manager, mlp())
    with pytest.raises(UsageError, match="one manager per model"):
        step(manager, mlp())


def test_the_log(caplog):
    manager = HybridOptimizationManager(HybridTrainingConfig(log_interval=2))
    model = mlp()
    with caplog.at_level(logging.INFO, "hybridkit"):
        for i in range(5):
            step(manager, model, i)
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["step 2", "step 4"]


# --- batches from clusters


class Points(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "y": self.y[i]}


def blobs():
    """Three far blobs of 20, 10 and 5 points; the label says which."""
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([torch.full((n,), i) for i, n in enumerate((20, 10, 5))])
    return 50.0 * y[:, None, None] + torch.randn(35, 2, 2, generator=generator), y


def manager_of_three():
    return HybridOptimizationManager(HybridTrainingConfig(data_clusters=3))


def test_batches_come_from_one_cluster_and_keep_their_structure():
    x, y = blobs()
    manager = manager_of_three()
    manager.setup_data_clustering((x, y))
    seen = set()
    for cluster in range(3):
        batch = manager.get_cluster_batch((x, y), 4, cluster)
        assert isinstance(batch, tuple)
        assert batch[0].shape == (4, 2, 2)
        assert len(set(batch[1].tolist())) == 1
        seen.add(batch[1][0].item())
    assert seen == {0, 1, 2}
    dataset = Points(x, y)
    manager.setup_data_clustering(dataset)
    batch = manager.get_cluster_batch(dataset, 3, 1)
    assert set(batch) == {"x", "y"}
    assert batch["x"].shape == (3, 2, 2)
    manager.setup_data_clustering(y.float())
    assert len(manager.get_cluster_batch(y.float(), 4, 0).unique()) == 1


def test_a_small_cluster_gives_what_it_has_and_minus_one_draws_from_all():
    x, y = blobs()
    manager = manager_of_three()
    manager.setup_data_clustering(x)
    sizes = sorted(len(manager.get_cluster_batch(y, 100, c)) for c in range(3))
    assert sizes == [5, 10, 20]
    assert sorted(manager.get_cluster_batch(y, 100, -1).tolist()) == y.tolist()


def test_draws_are_random_but_repeatable():
    x, _ = blobs()
    draws = []
    for _ in range(2):
        manager = manager_of_three()
        manager.setup_data_clustering(x)
        draws.append([manager.get_cluster_batch(x[:, 0, 0], 5, -1).tolist() for _ in range(3)])
    assert draws[0] == draws[1]
    assert draws[0][0] != draws[0][1]


def test_without_clustering_there_is_one_cluster():
    x, _ = blobs()
    manager = HybridOptimizationManager(HybridTrainingConfig(use_clustering=False))
    manager.setup_data_clustering(x)
    assert len(manager.get_cluster_batch(x, 100, 0)) == 35


def test_bad_requests():
    x, _ = blobs()
    manager = manager_of_three()
    with pytest.raises(UsageError, match="setup_data_clustering"):
        manager.get_cluster_batch(x, 4, 0)
    manager.setup_data_clustering(x)
    with pytest.raises(UsageError, match="setup_data_clustering"):
        manager.get_cluster_batch(x[:5], 4, 0)
    with pytest.raises(UsageError, match="from 0 to 2"):
        manager.get_cluster_batch(x, 4, 3)
    with pytest.raises(UsageError, match="at least one sample"):
        manager.get_cluster_batch(x, 0, 0)
