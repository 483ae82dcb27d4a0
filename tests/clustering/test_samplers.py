from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.clustering.samplers import SAMPLERS, BalancedSampler, PerClusterSampler, make_sampler
from hybridkit.errors import FileError, UsageError

label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=120)
batch_sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def epoch(sampler):
    return [next(sampler) for _ in range(sampler.steps_per_epoch)]


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=40, deadline=None)
@given(labels=label_lists, batch_size=batch_sizes, seed=seeds)
def test_every_epoch_shows_every_sample_once(name, labels, batch_size, seed):
    sampler = make_sampler(name, labels, batch_size, seed)
    for _ in range(2):
        draws = epoch(sampler)
        seen = torch.cat([d.indices for d in draws])
        assert seen.dtype == torch.int64
        assert sorted(seen.tolist()) == list(range(len(labels)))
        assert all(1 <= len(d.indices) <= batch_size for d in draws)
        for d in draws:
            counts = np.bincount([labels[i] for i in d.indices], minlength=max(labels) + 1)
            np.testing.assert_allclose(d.histogram, counts / len(d.indices))


@settings(max_examples=60, deadline=None)
@given(labels=label_lists, batch_size=batch_sizes, seed=seeds)
def test_balanced_batches_hold_the_proportional_share_of_every_cluster(labels, batch_size, seed):
    sampler = BalancedSampler(labels, batch_size, seed)
    assert sampler.steps_per_epoch == math.ceil(len(labels) / batch_size)
    draws = epoch(sampler)
    share = np.bincount(labels, minlength=max(labels) + 1) / len(draws)
    for d in draws:
        counts = np.bincount([labels[i] for i in d.indices], minlength=len(share))
        assert (np.abs(counts - share) < 1).all()
        assert d.cluster_id == -1
    sizes = [len(d.indices) for d in draws]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=40, deadline=None)
@given(labels=label_lists, batch_size=batch_sizes, seed=seeds)
def test_a_per_cluster_batch_comes_from_its_cluster_alone(labels, batch_size, seed):
    draws = epoch(PerClusterSampler(labels, batch_size, seed))
    for d in draws:
        assert {labels[i] for i in d.indices} == {d.cluster_id}
        assert d.histogram[d.cluster_id] == 1.0
    for cluster in set(labels):
        assert sum(d.cluster_id == cluster for d in draws) == math.ceil(labels.count(cluster) / batch_size)


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=40, deadline=None)
@given(labels=label_lists, batch_size=batch_sizes, seed=seeds, stop=st.integers(0, 60))
def test_resuming_anywhere_equals_never_having_stopped(name, labels, batch_size, seed, stop):
    whole = make_sampler(name, labels, batch_size, seed)
    for _ in range(stop):
        next(whole)
    resumed = make_sampler(name, labels, batch_size, seed=0)
    resumed.load_state_dict(whole.state_dict())
    for _ in range(whole.steps_per_epoch + 3):
        expected, got = next(whole), next(resumed)
        assert torch.equal(expected.indices, got.indices)
        assert (expected.cluster_id, expected.histogram) == (got.cluster_id, got.histogram)
    assert whole.state_dict() == resumed.state_dict()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_seed_and_the_epoch_decide_the_order(name):
    labels = np.arange(200) % 7

    def order(seed, epochs=1):
        sampler = make_sampler(name, labels, 16, seed)
        return [torch.cat([d.indices for d in epoch(sampler)]).tolist() for _ in range(epochs)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    first, second = order(1, epochs=2)
    assert first != second


def test_leftovers_fall_into_another_batch_each_epoch():
    sampler = BalancedSampler([0] * 27 + [1, 2], 8, seed=0)
    hosts, together = set(), set()
    for _ in range(60):
        draws = [set(d.indices.tolist()) for d in epoch(sampler)]
        hosts.add(next(i for i, drawn in enumerate(draws) if 27 in drawn))
        together.add(any({27, 28} <= drawn for drawn in draws))
    assert hosts == set(range(4))
    assert len(together) == 2, "samples of small clusters meet sometimes, not always"


def test_states_that_do_not_fit_are_refused():
    sampler = BalancedSampler([0, 1, 0, 1], 2, seed=3)
    state = sampler.state_dict()
    with pytest.raises(FileError, match="batch_size"):
        BalancedSampler([0, 1, 0, 1], 3, seed=3).load_state_dict(state)
    with pytest.raises(FileError, match="labels"):
        BalancedSampler([0, 1, 1, 1], 2, seed=3).load_state_dict(state)
    with pytest.raises(FileError, match="batch 99"):
        sampler.load_state_dict(state | {"position": 99})
    with pytest.raises(FileError, match="not the state of a sampler"):
        sampler.load_state_dict({"epoch": 1})
    with pytest.raises(FileError, match="not the state of a sampler"):
        sampler.load_state_dict(state | {"epoch": "1"})


def test_a_refused_state_leaves_the_sampler_where_it_was():
    sampler = BalancedSampler(np.arange(20) % 3, 4, seed=3)
    next(sampler)
    before = sampler.state_dict()
    with pytest.raises(FileError):
        sampler.load_state_dict(before | {"position": 99, "epoch": 5})
    assert sampler.state_dict() == before


@pytest.mark.parametrize(("labels", "batch_size"), [([], 2), ([-1, 0], 2), ([[0, 1]], 2), ([0, 1], 0)])
def test_bad_input_is_a_usage_error(labels, batch_size):
    with pytest.raises(UsageError):
        BalancedSampler(labels, batch_size, seed=0)


def test_unknown_names_get_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'balanced'"):
        make_sampler("balancd", [0], 1, 0)


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=40, deadline=None)
@given(labels=label_lists, batch_size=batch_sizes, seed=seeds, draws=st.integers(0, 60), data=st.data())
def test_others_stand_in_for_samples_held_back(name, labels, batch_size, seed, draws, data):
    held = data.draw(st.sets(st.integers(0, len(labels) - 1), max_size=len(labels) - 1))
    sampler, plain = (make_sampler(name, labels, batch_size, seed) for _ in range(2))
    sampler.hold_back(np.array(sorted(held), np.int64), draws)
    free = {label for i, label in enumerate(labels) if i not in held}
    for drawn in range(min(draws + 5, 70)):
        expected, found = next(plain), next(sampler)
        pairs = list(zip(expected.indices.tolist(), found.indices.tolist(), strict=True))
        if drawn >= draws:
            assert found.indices.equal(expected.indices)
            continue
        assert not held & {taken for _, taken in pairs}
        assert all(wanted == taken for wanted, taken in pairs if wanted not in held)
        assert all(labels[wanted] == labels[taken] for wanted, taken in pairs if labels[wanted] in free)
