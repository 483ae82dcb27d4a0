"""ConstrainedOptimizer: one gradient step in a ball."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.ancestor.constrained import ConstrainedOptimizer
from hybridkit.ancestor.quantization_error import quantization_error, quantizer_for
from hybridkit.errors import UsageError


@settings(max_examples=25, deadline=None)
@given(
    lr=st.sampled_from([0.0, 1e-3, 1.0]),
    radius=st.sampled_from([0.0, 1e-4, 0.1, 100.0]),
    seed=st.integers(0, 99),
)
def test_is_a_projected_gradient_step(lr, radius, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 5), (3,), (2, 2, 3)]
    parameters = [torch.randn(s, generator=generator) for s in shapes]
    gradients = [torch.randn(s, generator=generator) for s in shapes]
    before = [p.clone() for p in parameters]
    info = ConstrainedOptimizer().step(parameters, gradients, lr, radius)
    full = lr * math.sqrt(sum(g.double().square().sum().item() for g in gradients))
    moved = math.sqrt(
        sum((p.double() - b.double()).square().sum().item() for p, b in zip(parameters, before, strict=True))
    )
    assert info.constraint_radius == radius
    assert info.constraint_active == (full > radius)
    assert moved <= radius * (1 + 1e-6)
    assert moved == pytest.approx(min(full, radius), rel=1e-4, abs=1e-6)
    assert info.update_magnitude == pytest.approx(moved, rel=1e-4, abs=1e-6)
    assert info.efficiency == (pytest.approx(radius / full, rel=1e-5) if full else math.inf)
    assert info.quantization_error == quantization_error(parameters, quantizer_for(1.58))
    if lr and radius:
        for p, b, g in zip(parameters, before, gradients, strict=True):
            torch.testing.assert_close(p, b - moved / full * lr * g, rtol=1e-3, atol=1e-5)


def test_takes_one_tensor_that_requires_a_gradient():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    ConstrainedOptimizer().step(weight, torch.ones(3, 3), 0.1, 10.0)
    assert torch.allclose(weight, torch.full((3, 3), 0.9))
    assert weight.requires_grad


@pytest.mark.parametrize(
    ("gradients", "lr", "radius", "message"),
    [
        ([torch.ones(2)], 0.1, 1.0, "same shapes"),
        ([torch.ones(3)], -0.1, 1.0, "learning_rate"),
        ([torch.ones(3)], 0.1, math.nan, "constraint_radius"),
        ([torch.full((3,), math.inf)], 0.1, 1.0, "not finite"),
    ],
)
def test_bad_input_changes_nothing(gradients, lr, radius, message):
    weight = torch.ones(3)
    with pytest.raises(UsageError, match=message):
        ConstrainedOptimizer().step([weight], gradients, lr, radius)
    assert weight.tolist() == [1.0] * 3


def test_quantization_error_is_the_relative_loss():
    ternary = torch.tensor([[0.5, -0.5, 0.0, 0.5], [2.0, 2.0, -2.0, 2.0]])
    assert quantization_error([ternary[1:]], quantizer_for(1.58)) == pytest.approx(0.0, abs=1e-6)
    quantizer = quantizer_for(1.58)
    weight = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    matrix = weight.flatten(1)
    expected = (matrix - quantizer.quantize(matrix).dequantize()).norm() / matrix.norm()
    assert quantization_error([weight, torch.ones(6)], quantizer) == pytest.approx(expected.item(), rel=1e-5)
    assert quantization_error([torch.randn(50)], quantizer) > 0  # a lone vector is one row
    assert quantization_error([torch.zeros(3, 3), torch.zeros(0)], quantizer) == 0.0


def test_more_bits_lose_less():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    errors = [quantization_error([weight], quantizer_for(bits)) for bits in (1, 1.58, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert quantizer_for(1.58, 2.0).options.scale_multiplier == 2.0
