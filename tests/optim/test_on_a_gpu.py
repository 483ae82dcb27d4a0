"""The hybrid optimisation on a GPU: the steps of the processor, and one wait for the device in each."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from hybridkit.optim.factory import hybrid_optimizer
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.optimizers.orthogonal import orthogonalise
from hybridkit.training.checkpoint import load_checkpoint, save_checkpoint
from hybridkit.training.config import resolve
from hybridkit.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CONSTRAINTS = ("none", "l2", "per-layer", "per-cluster", "spectral")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(16, 24), nn.Linear(24, 40), nn.LayerNorm(40), nn.Linear(40, 24), nn.Linear(24, 16)
    )


def optimizer_of(model: nn.Module, constraint: str, base: str = "hybridkit:steepest") -> HybridOptimizer:
    return hybrid_optimizer(
        model,
        12,
        optimizer=base,
        constraint=f"hybridkit:{constraint}",
        weight_decay=0.0,
        initial_trust_radius=0.05,
        parameter_clusters=2,
    )


def steps(model: nn.Module, optimizer: HybridOptimizer, count: int) -> list[float]:
    """Losses of some steps on the same made-up tokens."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(count):
        tokens = torch.randint(0, 16, (32,), generator=generator).to(device)
        loss = nn.functional.cross_entropy(model(tokens), (tokens * 7 + 3) % 16)
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss.detach())
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 24, 40), (2, 40, 24), (1, 128, 512)])
def test_orthogonal_matrices_are_those_of_the_processor(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = orthogonalise(matrices.cuda()).cpu()
    assert torch.allclose(found, orthogonalise(matrices), atol=1e-3)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("base", ["hybridkit:steepest", "hybridkit:adamw"])
def test_a_run_is_that_of_the_processor(constraint, base):
    here = network()
    there = copy.deepcopy(here).cuda()
    on_processor, on_gpu = optimizer_of(here, constraint, base), optimizer_of(there, constraint, base)
    assert steps(there, on_gpu, 12) == pytest.approx(steps(here, on_processor, 12), rel=1e-3)
    for a, b in zip(here.state_dict().values(), there.state_dict().values(), strict=True):
        assert float((b.cpu() - a).norm()) <= 1e-2 * float(a.norm()) + 1e-6
    radius = on_processor.last_step["trust_radius"]
    assert on_gpu.last_step["trust_radius"] == pytest.approx(radius, rel=1e-2)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_a_step_waits_once_for_the_device(constraint):
    model = network().cuda()
    optimizer = optimizer_of(model, constraint)
    steps(model, optimizer, 4)
    loss = model(torch.arange(16, device="cuda")).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.observe(loss.detach())
    torch.cuda.set_sync_debug_mode("warn")  # the first time with a warning about itself
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [str(w.message).splitlines()[0] + f" ({w.filename}:{w.lineno})" for w in waits]
    assert len(found) == 1, found


@pytest.mark.parametrize("flags", [{}, {"ternary": True, "qat": True}], ids=["fp32", "ternary"])
def test_a_restored_run_goes_on_as_one_that_was_not_stopped(tmp_path, flags):
    config = resolve(task="digits", max_steps=12, batch_size=32, hybrid=True, device="cuda", **flags)
    whole, stopped = Trainer.seeded(config), Trainer.seeded(config)
    losses = [whole.step()["loss"] for _ in range(12)]
    for _ in range(6):
        stopped.step()
    saved = save_checkpoint(tmp_path, stopped.checkpoint())
    restored = Trainer.seeded(config, restored=load_checkpoint(saved))
    assert [restored.step()["loss"] for _ in range(6)] == pytest.approx(losses[6:], rel=1e-4)
