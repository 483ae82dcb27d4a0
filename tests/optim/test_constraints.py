"""Constraints: the bound holds, the direction stays, and what is inside keeps its bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import same_bits

from hybridkit.optim.constraints.l2 import L2Ball
from hybridkit.optim.constraints.none import Unconstrained
from hybridkit.optim.constraints.per_cluster import PerCluster
from hybridkit.optim.constraints.per_layer import PerLayer
from hybridkit.optim.constraints.spectral import Spectral, spectral_norm_bound

SHAPES = st.lists(
    st.lists(st.integers(1, 6), max_size=4).map(tuple), min_size=1, max_size=5
)  # scalars, vectors, matrices, kernels
RADII = st.sampled_from([1e-4, 0.01, 0.3, 2.0, 100.0])
SCALES = st.sampled_from([1e-5, 0.1, 1.0, 1e4])


def tensors(shapes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.randn(s, generator=generator) for s in shapes]
    return parameters, [scale * torch.randn(s, generator=generator) for s in shapes]


def exact_norm(tensor):
    return tensor.double().norm().item()


def spectral_norm(tensor):
    if tensor.ndim < 2:
        return exact_norm(tensor)
    return torch.linalg.matrix_norm(tensor.flatten(1).double(), 2).item()


def reference_scales(constraint, parameters, updates, radius, clusters):
    """The obvious way: how large each update may be, and is, in float64."""
    if isinstance(constraint, L2Ball):
        whole = sum(exact_norm(u) ** 2 for u in updates) ** 0.5
        return [(radius, whole)] * len(updates)
    if isinstance(constraint, PerCluster):
        sizes = {
            c: sum(exact_norm(u) ** 2 for u, k in zip(updates, clusters, strict=True) if k == c) ** 0.5
            for c in clusters
        }
        return [(radius, sizes[c]) for c in clusters]
    if isinstance(constraint, PerLayer):
        rms = (sum(exact_norm(p) ** 2 for p in parameters) / sum(p.numel() for p in parameters)) ** 0.5
        sizes = [max(exact_norm(p), 0.5 * rms * p.numel() ** 0.5) for p in parameters]
        return [(radius * size, exact_norm(u)) for u, size in zip(updates, sizes, strict=True)]
    return [(radius, spectral_norm(u)) for u in updates]


@pytest.mark.parametrize("make", [L2Ball, PerCluster, PerLayer, Spectral])
@settings(max_examples=30, deadline=None)
@given(shapes=SHAPES, scale=SCALES, radius=RADII, seed=st.integers(0, 999))
def test_equals_the_reference(make, shapes, scale, radius, seed):
    parameters, updates = tensors(shapes, scale, seed)
    clusters = [i % 2 for i in range(len(shapes))]
    constraint = make()
    constraint.bind(parameters, clusters)
    projected = [u.clone() for u in updates]
    report = constraint.apply(projected, parameters, radius)
    reference = reference_scales(constraint, parameters, updates, radius, clusters)
    slack = 1.2e-7 * sum(exact_norm(p) ** 2 for p in parameters) ** 0.5
    tight = 0.01 if isinstance(constraint, Spectral) else 1e-4
    for before, after, active, (allowed, size) in zip(
        updates, projected, report.active.tolist(), reference, strict=True
    ):
        if size < allowed * (1 - tight):
            assert not active
            assert same_bits([after], [before])
        elif size > allowed * (1 + 1e-5):
            assert active
            factor = allowed / size
            assert exact_norm(after) <= factor * exact_norm(before) * (1 + 1e-6)
            assert exact_norm(after) >= factor * exact_norm(before) * (1 - tight) - slack
            torch.testing.assert_close(
                after * exact_norm(before), before * exact_norm(after), rtol=1e-4, atol=1e-6
            )


def test_an_update_of_exactly_the_radius_is_inside():
    updates = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    report = L2Ball().apply(updates, [torch.ones(2), torch.ones(1)], 5.0)
    assert not report.active.any()
    assert updates[0].tolist() == [3.0, 0.0]


def test_each_cluster_has_its_own_radius():
    parameters = [torch.ones(4) for _ in range(3)]
    updates = [torch.full((4,), 1.0) for _ in range(3)]
    constraint = PerCluster()
    constraint.bind(parameters, [0, 1, 0])
    report = constraint.apply(updates, parameters, torch.tensor([0.5, 9.0]))
    assert report.norm.tolist() == pytest.approx([8**0.5, 2.0])
    assert report.active.tolist() == [True, False, True]
    assert torch.cat([updates[0], updates[2]]).norm() == pytest.approx(0.5, rel=1e-4)
    assert updates[1].tolist() == [1.0] * 4


def test_per_layer_lets_zero_biases_leave_zero():
    parameters = [torch.ones(10, 10), torch.zeros(10)]
    updates = [torch.ones(10, 10), torch.ones(10)]
    PerLayer().apply(updates, parameters, 0.1)
    assert updates[0].norm() == pytest.approx(0.1 * 10, rel=1e-3)
    assert updates[1].norm() > 0.04 * 10**0.5


def test_unconstrained_reports_and_leaves():
    updates = [torch.tensor([3.0]), torch.tensor([-4.0])]
    report = Unconstrained().apply(updates, updates, 1e-3)
    assert report.norm == 5
    assert not report.active.any()
    assert torch.cat(updates).tolist() == [3.0, -4.0]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    rank=st.integers(1, 40),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    seed=st.integers(0, 999),
)
def test_spectral_norm_bound(rows, columns, rank, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(rows, rank, generator=generator),
        torch.randn(rank, columns, generator=generator),
    )
    matrix = scale * (left @ right)
    exact = spectral_norm(matrix)
    bound = spectral_norm_bound(matrix, torch.linalg.vector_norm(matrix)).item()
    assert exact * (1 - 1e-5) <= bound <= exact * 40 ** (1 / 1024) * (1 + 1e-5)


def test_spectral_norm_bound_is_worst_for_orthogonal_matrices():
    matrix = torch.linalg.qr(torch.randn(100, 100, generator=torch.Generator().manual_seed(0)))[0]
    bound = spectral_norm_bound(matrix, torch.linalg.vector_norm(matrix)).item()
    assert 1 <= bound <= 100 ** (1 / 1024) * (1 + 1e-4)


def test_spectral_takes_empty_tensors():
    updates = [torch.zeros(3, 0), torch.zeros(0, 3), torch.ones(2, 2)]
    report = Spectral().apply(updates, [torch.ones_like(u) for u in updates], 1.0)
    assert report.active.tolist() == [False, False, True]
