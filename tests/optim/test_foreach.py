"""Norms of lists of tensors, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.optim import foreach

shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(shapes=shapes, scale=st.sampled_from([1e-6, 1.0, 1e6]), seed=st.integers(0, 99))
def test_norms_equal_the_definition(shapes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [scale * torch.randn(s, generator=generator) for s in shapes]
    expected = torch.stack([t.double().square().sum().sqrt() for t in tensors])
    found = foreach.norms(tensors)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(foreach.total_norm(found).double(), expected.norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [4 * 4096, 4 * 4096 + 1, 1_000_003])
def test_norms_of_large_tensors_are_accurate(size):
    # Equal numbers are the worst case of a running fp32 sum: torch's own CPU norm is off by 1e-4 here.
    tensor = torch.full((size,), 0.1)
    exact = tensor.double().norm()
    assert abs(foreach.norms([tensor, torch.ones(3)])[0].double() / exact - 1) < 1e-5


@settings(max_examples=30, deadline=None)
@given(
    shapes=shapes, dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), mixed=st.booleans()
)
def test_flat_and_scattered_tensors_give_the_same(shapes, dtype, mixed):
    like = [torch.ones(s, dtype=dtype) for s in shapes] + [torch.ones(2, dtype=torch.float64)] * mixed
    found, plain = foreach.zeros_like(like, wide=True), [torch.zeros_like(t).double() for t in like]
    assert isinstance(found, foreach.Flat) == (len({t.dtype for t in found}) == 1)
    assert [t.shape for t in found] == [t.shape for t in like]
    assert all(t.dtype in (torch.float32, torch.float64) for t in found)
    others = foreach.zeros_like(like, wide=True)
    for i, (a, b, c) in enumerate(zip(found, others, plain, strict=True)):
        a.fill_(i + 1.0)
        b.fill_(0.25)
        c.fill_((i + 1.0 + 0.25 - 0.5) * 0.5)
    foreach.add_(found, others)
    foreach.scale_(others, torch.tensor(2.0))
    foreach.subtract_(found, others)
    foreach.scale_(found, torch.tensor(0.5))
    assert all(torch.equal(a.double(), c) for a, c in zip(found, plain, strict=True))
    expected = torch.cat([c.flatten() for c in plain]).norm()
    torch.testing.assert_close(foreach.norm(found).double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(foreach.norm(list(found)).double(), expected, rtol=1e-5, atol=0)


def test_norms_of_low_precision_tensors_are_fp32():
    tensor = torch.full((1000,), 0.1, dtype=torch.bfloat16)
    assert abs(foreach.norms([tensor])[0].item() / tensor.double().norm().item() - 1) < 1e-5


def test_norms_of_nothing():
    assert foreach.norms([]).shape == (0,)


def test_dot_equals_the_definition():
    left, right = [torch.randn(3, 4), torch.randn(2)], [torch.randn(3, 4), torch.randn(2)]
    expected = sum((a * b).sum() for a, b in zip(left, right, strict=True))
    torch.testing.assert_close(foreach.dot(left, right), expected)


def test_cluster_norms_are_the_norms_of_the_clusters():
    each = torch.tensor([3.0, 4.0, 2.0])
    members = foreach.membership([1, 1, 0], 3, torch.device("cpu"))
    torch.testing.assert_close(foreach.cluster_norms(each, members), torch.tensor([2.0, 5.0, 0.0]))


def test_vector_holds_the_numbers():
    assert foreach.vector([0.5, 2.0], torch.device("cpu")).tolist() == [0.5, 2.0]
    assert foreach.vector([0.5, 2.0], torch.device("meta")).shape == (2,)
