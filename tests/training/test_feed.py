"""Batches from samplers and streams, and going on where they were."""

from __future__ import annotations

from itertools import chain, islice

import numpy as np
import pytest
import torch

from hybridkit.clustering.samplers import make_sampler
from hybridkit.errors import FileError, UsageError
from hybridkit.training.feed import Sampled, Streamed


class Numbers:
    """A stream that shuffles by the epoch."""

    def __init__(self, samples, known=True):
        self.samples, self.epoch, self.told = samples, 0, []
        if known:
            self.__class__ = Known

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.told.append(epoch)

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(self.samples)
        yield from torch.from_numpy(order)


class Known(Numbers):
    def __len__(self):
        return self.samples


class Stateful(Numbers):
    """A stream that keeps its place itself."""

    place = 0

    def __iter__(self):
        while self.place < self.samples:
            self.place += 1
            yield torch.tensor(self.place - 1)
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def drawn(feed, steps):
    return [fed.batch.tolist() for fed in islice(iter(lambda: next(feed), None), steps)]


def test_an_epoch_of_a_stream_shows_every_sample_once():
    feed = Streamed(Numbers(10), 4, None)
    assert feed.steps_per_epoch == 3
    first, second = drawn(feed, 3), drawn(feed, 3)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(10))
    assert first != second, "the stream was not told the epoch"
    assert [len(batch) for batch in first] == [4, 4, 2]


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5, 8])
@pytest.mark.parametrize("make", [lambda: Numbers(10), lambda: Stateful(10, known=False)])
def test_a_stream_goes_on_where_it_was(make, steps):
    whole = drawn(Streamed(make(), 4, 3), 12)
    before = Streamed(make(), 4, 3)
    drawn(before, steps)
    after = Streamed(make(), 4, 3)
    after.load_state_dict(before.state_dict())
    assert drawn(after, 12 - steps) == whole[steps:]


def test_a_sampler_feeds_as_it_draws():
    data = (torch.arange(9.0), torch.arange(9))
    sampler, twin = (make_sampler("shuffle", np.zeros(9, np.int64), 4, 1) for _ in range(2))
    feed = Sampled(data, sampler)
    fed, draw = next(feed), next(twin)
    assert torch.equal(fed.batch[1], draw.indices)
    assert (fed.cluster_id, fed.histogram) == (draw.cluster_id, draw.histogram)
    again = Sampled(data, make_sampler("shuffle", np.zeros(9, np.int64), 4, 1))
    again.load_state_dict(feed.state_dict())
    assert torch.equal(next(again).batch[0], next(feed).batch[0])


def test_a_stream_without_end_or_samples_is_refused():
    with pytest.raises(UsageError, match="--max-steps"):
        Streamed(Numbers(3, known=False), 4, None)
    with pytest.raises(UsageError, match="without samples"):
        next(Streamed(Numbers(0), 4, 5))


def test_other_data_than_the_checkpoints_are_refused():
    feed = Streamed(Numbers(10), 4, None)
    drawn(feed, 2)
    with pytest.raises(FileError, match="other data"):
        Streamed(Numbers(5), 4, None).load_state_dict(feed.state_dict())
