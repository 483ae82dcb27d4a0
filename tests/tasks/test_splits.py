from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import UsageError
from hybridkit.tasks.splits import fingerprint, fixed_permutation, stratified_indices, stratified_splits


def test_the_permutation_is_the_same_for_ever():
    digest = hashlib.sha256(fixed_permutation(1000, seed=7).astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("8a55ec7c8bae1580")


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_it_is_a_permutation(n, seed):
    assert sorted(fixed_permutation(n, seed).tolist()) == list(range(n))


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200),
    fractions=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
    seed=st.integers(0, 2**32),
)
def test_parts_are_disjoint_complete_and_stratified(labels, fractions, seed):
    labels = np.array(labels)
    parts = stratified_indices(labels, fractions, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part, fraction in zip(parts, fractions, strict=False):
        for label in np.unique(labels):
            assert abs((labels[part] == label).sum() - fraction * (labels == label).sum()) <= 1


def test_splits_keep_inputs_and_targets_together():
    targets = torch.arange(90) % 3
    splits = stratified_splits(torch.arange(90).float(), targets, validation=0.2, test=0.3, seed=1)
    assert [len(p[0]) for p in (splits.train, splits.validation, splits.test)] == [45, 18, 27]
    for inputs, part in (splits.train, splits.validation, splits.test):
        assert torch.equal(inputs.long() % 3, part)


def test_splits_refuse_what_they_cannot_split():
    with pytest.raises(UsageError, match="3 inputs but 2 targets"):
        stratified_splits(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UsageError, match="too few"):
        stratified_splits(torch.zeros(2), torch.zeros(2, dtype=torch.int64))


def test_fingerprints_tell_values_shapes_and_types_apart():
    x = torch.arange(6)
    prints = {fingerprint(t) for t in (x, x.clone(), x.reshape(2, 3), x.int(), x + 1)}
    assert len(prints) == 4
