"""Samples that the first part of a run does not learn from: on them shows what steps are worth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hybridkit.optim.protocol import Announced
from hybridkit.tasks.data import Batch, count, size, take
from hybridkit.tasks.protocol import Task, forward
from hybridkit.tasks.splits import fixed_permutation
from hybridkit.training.config import TrainConfig
from hybridkit.training.feed import Feed, Sampled

LEAST: Final = 8  # samples; of sets of twice as many
SMALL: Final = 64  # of small sets a quarter up to this, since fewer say little
MOST: Final = 256  # of large ones an eighth up to this
COST: Final = 0.05  # of the run's time, at most: a training step counts as three forward passes


def hold_back(feed: Feed, said: Announced, config: TrainConfig, total_steps: int) -> Batch | None:
    """The samples that a controller judges by, which `feed` holds back from here on; often none.

    Nothing can be memorised in a run that sees no sample twice until `said.probe_until`. Streams have no
    samples to hold back.
    """
    steps = int(said.probe_until * total_steps)
    if not isinstance(feed, Sampled) or steps <= -(-feed.steps_per_epoch // config.accumulate):
        return None
    trained = total_steps * config.accumulate * config.batch_size * config.processes
    held = held_back(size(feed.data) or 0, config.seed, trained=trained, looks=said.probe_looks)
    if not len(held):
        return None
    feed.sampler.hold_back(held, steps * config.accumulate)
    return take(feed.data, held.tolist(), feed.collate)


def held_back(samples: int, seed: int, *, trained: int, looks: int) -> NDArray[np.int64]:
    """Which samples of a training set are the probe, int64 [probe], sorted; none of a set below 16.

    trained: samples that the run learns from, repeated ones counted each time. looks: how often the probe is
    looked at.
    """
    if samples < 2 * LEAST:
        return np.zeros(0, np.int64)
    affordable = int(COST * 3 * trained / looks)
    size = max(min(samples // 4, SMALL), min(samples // 8, MOST))
    size = max(min(size, affordable), LEAST)
    return np.sort(fixed_permutation(samples, seed)[:size])


@contextlib.contextmanager
def own_statistics(model: nn.Module, task: Task, batches: Iterable[Batch]) -> Iterator[None]:
    """Running means and variances as the weights that are in place give them on `batches`; put back after.

    What BatchNorm has gathered while it trained belongs to the weights of those steps, not to a mean of them
    (Izmailov et al. 2018, arXiv 1803.05407, section 3.2).
    """
    layers: list[Any] = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    before = [(layer.momentum, {n: b.clone() for n, b in layer.named_buffers()}) for layer in layers]
    mode = {module: module.training for module in model.modules()}
    try:
        if layers:
            model.eval()
            for layer in layers:
                layer.train().reset_running_stats()
                layer.momentum = None  # all batches count alike
            try:
                with torch.no_grad():
                    for batch in batches:
                        if count(batch) > 1:  # one sample has no variance
                            forward(task, model, batch)
            finally:
                for module, training in mode.items():
                    module.training = training
        yield
    finally:
        with torch.no_grad():
            for layer, (momentum, buffers) in zip(layers, before, strict=True):
                layer.momentum = momentum
                for name, buffer in layer.named_buffers():
                    buffer.copy_(buffers[name])
