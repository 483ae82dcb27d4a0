"""Relative steps against a few lines of obvious code, and what makes them relative."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.optim.base import build_base_optimizer
from hybridkit.optim.optimizers.steepest import RelativeDescent, Steepest


def reference_step(
    weight, gradient, state, *, length, norm, row_decay, keep, cautious, momentum=0.9, beta2=0.99
):
    """One step on one parameter, written as the docstring says, the polar factor by an SVD."""
    state["step"] = t = state.get("step", 0) + 1
    squares = state.setdefault("squares", [])
    squares.append(gradient.square().sum().item())
    recent = sum(0.9 ** (t - i) * s for i, s in enumerate(squares, 1)) * 0.1 / (1 - 0.9**t)
    past = sum(i * s for i, s in enumerate(squares, 1)) / sum(range(1, t + 1))
    length = length * min(1.0, recent / past)
    state.setdefault("size", weight.square().mean().sqrt().clamp(min=1e-12 if norm == "spectral" else 0.05))
    state["m"] = m = momentum * state.get("m", 0) + (1 - momentum) * gradient
    if norm == "adam":
        state["v"] = v = beta2 * state.get("v", 0) + (1 - beta2) * gradient**2
        direction = (m / (1 - momentum**t)) / ((v / (1 - beta2**t)).sqrt() + 1e-12)
        return weight - length * state["size"] * direction
    ahead = ((1 - momentum) * gradient + momentum * m).flatten(1)
    u, _, w = torch.linalg.svd(ahead, full_matrices=False)
    unit = u @ w
    state["rows"] = rows = row_decay * state.get("rows", 0) + (1 - row_decay) * (unit**2).mean(
        1, keepdim=True
    )
    if row_decay:
        unit = unit / (rows / (1 - row_decay**t)).sqrt()
    if cautious:
        unit[unit * gradient.flatten(1) <= 0] = 0
    unit = unit / unit.square().mean().sqrt().clamp(min=1e-12)  # all may be opposed
    moved = weight - (length * state["size"] * unit).view_as(weight)
    return moved * (weight.norm() / moved.norm()) if keep else moved


@settings(deadline=None)
@given(
    st.sampled_from([(4, 6), (6, 4), (5, 5), (3, 2, 3, 3), (1, 7), (7,), (2, 1)]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.95]),
    st.integers(0, 2**31),
)
def test_steps_are_those_of_the_reference(shape, keep, cautious, row_decay, seed):
    generator = torch.Generator().manual_seed(seed)
    norm = "spectral" if len(shape) > 1 else "adam"
    weight = torch.randn(shape, generator=generator)
    parameter = nn.Parameter(weight.clone())
    optimizer = RelativeDescent(
        [parameter], 1e-3, norm=norm, reach=20.0, row_decay=row_decay, keep_norm=keep, cautious=cautious
    )
    state: dict = {}
    for step in range(4):
        gradient = torch.randn(shape, generator=generator) / (1 + step)  # so that damping has something to do
        before = parameter.detach().clone()
        weight = reference_step(
            before,
            gradient,
            state,
            length=0.02,
            norm=norm,
            row_decay=row_decay,
            keep=keep and norm == "spectral",
            cautious=cautious,
        )
        parameter.grad = gradient
        optimizer.step()
        # singular values are 1 within 0.2 here, and exactly there: the step is off by a quarter at most
        bound = 1e-3 if norm == "adam" else 0.45
        assert (parameter - weight).norm() <= bound * (weight - before).norm() + 1e-6
        if keep and norm == "spectral":
            torch.testing.assert_close(parameter.norm(), before.norm())


@settings(deadline=None)
@given(st.floats(-4, 4), st.floats(-4, 4), st.integers(0, 2**31))
def test_neither_the_loss_nor_the_weights_have_a_scale(weights, gradients, seed):
    """Ten to the power of them: the steps, over the weights' size, stay what they are."""
    shifts = []
    for weight_scale, gradient_scale in ((1.0, 1.0), (10**weights, 10**gradients)):
        generator = torch.Generator().manual_seed(seed)
        start = weight_scale * torch.randn(6, 5, generator=generator)
        parameter = nn.Parameter(start.clone())
        optimizer = RelativeDescent([parameter], 1e-3)
        for _ in range(3):
            parameter.grad = gradient_scale * torch.randn(6, 5, generator=generator)
            optimizer.step()
        shifts.append((parameter.detach() - start) / weight_scale)
    torch.testing.assert_close(shifts[0], shifts[1], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("norm", ["spectral", "adam"])
def test_other_precisions_take_the_steps_of_float32(dtype, tolerance, norm):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 5, generator=generator).to(dtype)
    parameters = [nn.Parameter(start.clone()), nn.Parameter(start.float())]
    optimizers = [RelativeDescent([p], 1e-2, norm=norm) for p in parameters]
    for _ in range(4):
        gradient = torch.randn(6, 5, generator=generator)
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
            optimizer.step()
    other, float32 = (p.detach() for p in parameters)
    assert other.dtype == dtype
    assert (other.float() - float32).norm() <= tolerance * (float32 - start.float()).norm()


def test_a_step_changes_a_matrix_by_what_it_says():
    parameter = nn.Parameter(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)))
    before = parameter.detach().clone()
    parameter.grad = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    RelativeDescent([parameter], 1e-3, reach=30.0, keep_norm=False).step()
    assert ((parameter - before).norm() / before.norm()).item() == pytest.approx(0.03, rel=1e-3)


def test_blocks_are_orthogonalised_on_their_own():
    gradient = torch.randn(10, 40, generator=torch.Generator().manual_seed(2))
    whole, halves = (nn.Parameter(torch.ones(10, 40)) for _ in range(2))
    for parameter, block in ((whole, 10), (halves, 4)):
        parameter.grad = gradient
        RelativeDescent([parameter], 1e-3, block=block, row_decay=0.0, keep_norm=False).step()
    first = nn.Parameter(torch.ones(4, 40))
    first.grad = gradient[:4]
    RelativeDescent([first], 1e-3, row_decay=0.0, keep_norm=False).step()
    a, b = (1 - halves.detach())[:4], 1 - first.detach()
    torch.testing.assert_close(a / a.norm(), b / b.norm())
    assert not torch.allclose(whole, halves)


def test_zeros_and_missing_gradients():
    bias, frozen = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4, 4))
    optimizer = RelativeDescent([{"params": [bias], "norm": "adam"}, {"params": [frozen]}])
    bias.grad = torch.ones(4)
    optimizer.step()
    assert bias.tolist() == pytest.approx([-1e-3 * 20 * 0.05] * 4)
    assert (frozen == 1).all()
    frozen.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(frozen.detach(), torch.ones(4, 4))


def test_the_recipe_gives_each_kind_its_norm():
    embedded = nn.Embedding(7, 4)
    model = nn.ModuleDict({"embed": embedded, "conv": nn.Conv2d(1, 4, 3), "norm": nn.BatchNorm2d(4)})
    model["head"] = nn.Linear(4, 3)
    options = {"reach": 10.0, "embedding": 3.0, "output": 2.0, "vector": 0.5}
    optimizer = build_base_optimizer("steepest", model, lr=0.1, momentum=0.8, options=options)
    found = {(g["norm"], g["reach"]): [p.shape for p in g["params"]] for g in optimizer.param_groups}
    assert found[("spectral", 10.0)] == [(4, 1, 3, 3)]
    assert found[("adam", 30.0)] == [(7, 4)]
    assert found[("adam", 20.0)] == [(3, 4)]
    assert len(found[("adam", 5.0)]) == 4
    assert all(g["momentum"] == 0.8 for g in optimizer.param_groups)
    assert isinstance(Steepest().options, Steepest.Options)


def test_wide_embeddings_move_less():
    model = nn.ModuleDict({f"embed{width}": nn.Embedding(5, width) for width in (3, 128, 512)})
    options = {"reach": 10.0, "embedding": 3.0}
    optimizer = build_base_optimizer("steepest", model, lr=0.1, options=options)
    found = {g["reach"]: [p.shape[1] for p in g["params"]] for g in optimizer.param_groups}
    assert found == {30.0: [3, 128], 7.5: [512]}


def test_steps_shrink_with_the_gradient_and_only_with_it():
    for damped, expected in ((True, 0.35), (False, 1.0)):
        parameter = nn.Parameter(torch.ones(8, 8))
        optimizer = RelativeDescent([parameter], 1e-3, damped=damped, keep_norm=False, row_decay=0.0)
        lengths = []
        for step in range(60):
            scale = 1.0 if step < 5 else 1e-3
            parameter.grad = scale * torch.eye(8)
            before = parameter.detach().clone()
            optimizer.step()
            lengths.append((parameter - before).norm().item())
        assert lengths[4] == pytest.approx(lengths[0], rel=1e-4)
        assert lengths[-1] / lengths[0] < expected + 1e-4
        assert damped or lengths[-1] == pytest.approx(lengths[0], rel=1e-3)
