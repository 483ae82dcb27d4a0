"""Orthogonalising by products against the singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.optim.optimizers.orthogonal import orthogonalise


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """The reference: U V^T."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """The same singular vectors, singular values between 0.8 and 1.2."""
    return bool((torch.linalg.matrix_norm(found - expected, 2) < 0.25).all())


@settings(deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 3), st.integers(0, 2**31), st.floats(-6, 6))
def test_singular_values_become_one(rows, columns, batch, seed, magnitude):
    generator = torch.Generator().manual_seed(seed)
    shape = batch, rows, columns
    # Well-conditioned ones: what is a thousandth of the norm is promised nothing.
    u = torch.linalg.qr(torch.randn(batch, rows, rows, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(batch, columns, columns, generator=generator))[0]
    k = min(rows, columns)
    values = torch.rand(batch, 1, k, generator=generator) * 0.9 + 0.1
    matrices = 10**magnitude * (u[..., :k] * values) @ v[..., :k].mT
    found = orthogonalise(matrices)
    assert found.shape == shape
    assert close(found, polar(matrices))


@pytest.mark.parametrize("shape", [(2, 128, 512), (1, 512, 128), (3, 64, 9)])
def test_random_matrices(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.8
    assert values.max() < 1.2


def test_zero_stays_zero_and_members_of_a_batch_do_not_mix():
    one = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    found = orthogonalise(torch.stack([one, torch.zeros(6, 4), 1e3 * one]))
    assert (found[1] == 0).all()
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[0], orthogonalise(one[None])[0])
