"""Samples that the first part of a run does not learn from: on them shows what steps are worth."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hybridkit.tasks.splits import fixed_permutation

LEAST: Final = 8  # samples; of sets of twice as many
SMALL: Final = 64  # of small sets a quarter up to this, since fewer say little
MOST: Final = 256  # of large ones an eighth up to this
COST: Final = 0.05  # of the run's time, at most: a training step counts as three forward passes


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
