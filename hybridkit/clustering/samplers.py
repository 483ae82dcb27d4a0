"""Samplers: endless streams of batches drawn from clustered data.

A sampler draws up one epoch at a time: a list of index arrays, one per batch, in which every sample
appears exactly once, and it is a pure function of (labels, batch size, seed, epoch). The state of a sampler
is therefore a few integers, and a resumed one continues exactly.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridkit.errors import FileError, UsageError
from hybridkit.options import nearest

Labels = NDArray[np.int64]
Epoch = list[NDArray[np.int64]]  # the batches of one epoch, positions in the data


@dataclass(frozen=True, slots=True)
class Draw:
    """One batch: which samples, and from which clusters.

    indices: int64 [batch], positions in the data.
    cluster_id: the cluster all of them come from, or -1 where the batch is spread over clusters.
    histogram: share of the batch per cluster, [clusters], sums to 1.
    """

    indices: Tensor
    cluster_id: int
    histogram: tuple[float, ...]


def shuffled(labels: Labels, batch_size: int, random: np.random.Generator) -> Epoch:
    """A random permutation, dealt into ceil(samples / batch_size) batches of equal size, give or take one."""
    return balanced(np.zeros_like(labels), batch_size, random)


def balanced(labels: Labels, batch_size: int, random: np.random.Generator) -> Epoch:
    """Stratified batches: each holds its proportional share of every cluster, rounded down or up.

    The samples, cluster after cluster and shuffled within each, are dealt to the T = ceil(samples /
    batch_size) batches like cards. A cluster of n samples gives every batch floor(n / T) or ceil(n / T) of
    them, and batch sizes differ by one at most. Shares are proportional (not equal) so that the mean gradient
    stays unbiased.
    """
    samples = len(labels)
    batches = -(-samples // batch_size)
    shuffle = random.permutation(samples)
    # Clusters come in a random order, or the leftovers of small ones would always meet in the same batches.
    rank = random.permutation(int(labels.max()) + 1)
    deck = shuffle[np.argsort(rank[labels[shuffle]], kind="stable")]
    return [deck[t::batches] for t in random.permutation(batches)]


def per_cluster(labels: Labels, batch_size: int, random: np.random.Generator) -> Epoch:
    """Batches from one cluster each, in random order.

    A cluster of n samples is dealt into ceil(n / batch_size) batches, so that a cluster comes up in
    proportion to its size (rounded up to whole batches).
    """
    plan: Epoch = []
    for cluster in np.unique(labels):
        members = np.flatnonzero(labels == cluster)
        plan += [members[batch] for batch in shuffled(members, batch_size, random)]
    return [plan[t] for t in random.permutation(len(plan))]


WINDOW = 64  # batches whose samples are sorted by length together


def by_length(plan: Epoch, lengths: Labels, random: np.random.Generator) -> Epoch:
    """The same samples in batches of about one length, so that they need little padding.

    The samples of every `WINDOW` batches are sorted by `lengths` (int64 [samples]) and dealt out anew into
    batches of the same sizes, which come in random order.
    """
    made: Epoch = []
    for start in range(0, len(plan), WINDOW):
        window = plan[start : start + WINDOW]
        members = np.concatenate(window)
        members = members[np.argsort(lengths[members], kind="stable")]
        made += np.split(members, np.cumsum([len(batch) for batch in window])[:-1])
    return [made[t] for t in random.permutation(len(made))]


def stand_ins(labels: Labels, held: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """For each sample the one to take, int64 [samples]: itself, or for those at `held` a random other one.

    That one is not held, and of the same cluster where the cluster has any such. Not all may be held.
    """
    found = np.arange(len(labels))
    free = np.ones(len(labels), bool)
    free[held] = False
    for label in np.unique(labels[held]):
        members = held[labels[held] == label]
        others = np.flatnonzero(free & (labels == label))
        found[members] = random.choice(others if len(others) else np.flatnonzero(free), len(members))
    return found


class Sampler(ABC):
    """An endless iterator of `Draw`s over samples with cluster `labels` (int64 [samples], from 0).

    lengths: int64 [samples], how long samples are, where they are padded; `ShuffleSampler` makes batches of
    samples of about one length then.

    Raises UsageError if there are no samples, a label is negative, or `batch_size` is below 1.
    """

    def __init__(
        self, labels: Labels | Tensor, batch_size: int, seed: int, lengths: Labels | None = None
    ) -> None:
        self.labels = np.ascontiguousarray(labels, dtype=np.int64)
        if self.labels.ndim != 1 or len(self.labels) == 0 or self.labels.min() < 0:
            raise UsageError(
                "a sampler needs cluster labels: one integer >= 0 per sample, and at least one sample"
            )
        if batch_size < 1:
            raise UsageError(f"batch size is {batch_size}; it must be at least 1")
        self.batch_size = batch_size
        self.seed = seed
        self.lengths = lengths
        self.clusters = int(self.labels.max()) + 1
        self._stand_ins: NDArray[np.int64] | None = None
        self._held_until = 0
        self._start(epoch=0, position=0)

    def hold_back(self, indices: NDArray[np.int64], draws: int) -> None:
        """Give none of the samples at `indices` (int64) in the first `draws` batches of all.

        Others stand in for them, of the same cluster where it has any, chosen by the seed, so that batches
        and epochs keep their sizes.
        """
        random = np.random.default_rng([self.seed, *b"held back"])
        self._stand_ins, self._held_until = stand_ins(self.labels, indices, random), draws

    @property
    def steps_per_epoch(self) -> int:
        """How many batches show every sample once."""
        return len(self._batches)

    @property
    def drawn(self) -> int:
        """How many batches were given."""
        return self.epoch * self.steps_per_epoch + self.position

    def __iter__(self) -> Iterator[Draw]:
        return self

    def __next__(self) -> Draw:
        if self.position == len(self._batches):
            self._start(self.epoch + 1, 0)
        indices = self._batches[self.position]
        if self._stand_ins is not None and self.drawn < self._held_until:
            indices = self._stand_ins[indices]
        self.position += 1
        counts = np.bincount(self.labels[indices], minlength=self.clusters)
        return Draw(
            torch.from_numpy(indices), self._cluster_id(indices), tuple((counts / len(indices)).tolist())
        )

    def _cluster_id(self, indices: NDArray[np.int64]) -> int:
        return -1

    @abstractmethod
    def batches(self, random: np.random.Generator) -> Epoch:
        """The batches of one epoch; every epoch has equally many."""

    def _start(self, epoch: int, position: int) -> None:
        self.epoch, self.position = epoch, position
        batches = self.batches(np.random.default_rng([self.seed, epoch]))
        self._batches = [np.ascontiguousarray(batch) for batch in batches]

    def state_dict(self) -> dict[str, int]:
        """Where the sampler stands, and a checksum of what it draws from: integers only."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "batch_size": self.batch_size,
            "labels_crc32": self._checksum(),
        }

    def _checksum(self) -> int:
        checksum = zlib.crc32(self.labels.tobytes())
        return checksum if self.lengths is None else zlib.crc32(self.lengths.tobytes(), checksum)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises FileError if the state is malformed or was taken with other labels or another batch size.
        """
        here = self.state_dict()
        if set(state) != set(here) or not all(isinstance(v, int) and v >= 0 for v in state.values()):
            raise FileError(
                f"this is not the state of a sampler: it must hold integers named {', '.join(here)}"
            )
        for name in ("batch_size", "labels_crc32"):
            if state[name] != here[name]:
                raise FileError(
                    f"the sampler's state was saved with another {name}; use the same data and settings"
                )
        if state["position"] > self.steps_per_epoch:  # the same in every epoch
            raise FileError(f"the sampler's state says batch {state['position']} of {self.steps_per_epoch}")
        self.seed = state["seed"]
        self._start(state["epoch"], state["position"])


class ShuffleSampler(Sampler):
    """Plain shuffling, or by length; the clusters show up in the histogram only."""

    def batches(self, random: np.random.Generator) -> Epoch:
        """The batches of one epoch."""
        plan = shuffled(self.labels, self.batch_size, random)
        return plan if self.lengths is None else by_length(plan, self.lengths, random)


class BalancedSampler(Sampler):
    """Every batch is spread over the clusters in proportion to their sizes; see `balanced`."""

    def batches(self, random: np.random.Generator) -> Epoch:
        """The batches of one epoch."""
        return balanced(self.labels, self.batch_size, random)


class PerClusterSampler(Sampler):
    """Every batch comes from one cluster; see `per_cluster`."""

    def batches(self, random: np.random.Generator) -> Epoch:
        """The batches of one epoch."""
        return per_cluster(self.labels, self.batch_size, random)

    def _cluster_id(self, indices: NDArray[np.int64]) -> int:
        return int(self.labels[indices[0]])


SAMPLERS: dict[str, type[Sampler]] = {
    "balanced": BalancedSampler,
    "per-cluster": PerClusterSampler,
    "shuffle": ShuffleSampler,
}


def make_sampler(
    name: str, labels: Labels | Tensor, batch_size: int, seed: int, lengths: Labels | None = None
) -> Sampler:
    """The sampler called `name`: balanced, per-cluster or shuffle. Raises UsageError for another name."""
    if name not in SAMPLERS:
        raise UsageError(f"no sampler is called {name!r}; {nearest(name, SAMPLERS)}")
    return SAMPLERS[name](labels, batch_size, seed, lengths)
