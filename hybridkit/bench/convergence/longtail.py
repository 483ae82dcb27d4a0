"""Fashion-MNIST with a long tail: classes of the training data thinned exponentially, 1 : 100."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from hybridkit.tasks.fashion_mnist import FashionMNIST
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.supervised import SupervisedTask, accuracy

RATIO: Final = 100
SEED: Final = 100


def fashion_mnist_long_tailed() -> SupervisedTask:
    """Validation and test data stay whole. Their classes are of equal size, so that plain accuracy is the
    mean of the classes' accuracies."""
    whole = FashionMNIST()

    def load() -> Splits:
        splits = whole.splits()
        kept = thinned(splits.train[1], RATIO)
        return Splits(tuple(part[kept] for part in splits.train), splits.validation, splits.test)

    return SupervisedTask(
        name="fashion-mnist-long-tailed",
        load=load,
        models=whole.models,
        prepare=whole.prepare,
        measures={"balanced_accuracy": accuracy},
        metric="balanced_accuracy",
        features=whole.features,
        input_names=whole.input_names,
        source=f"{whole.source}, training classes thinned 1:{RATIO}",
    )


def thinned(labels: Tensor, ratio: float) -> Tensor:
    """Ascending indices (int64) into `labels` (int64 [samples], classes from 0).

    Of C classes class c keeps a share ratio^(-c / (C - 1)), at least one sample; always the same ones.
    """
    classes = int(labels.max()) + 1
    random = np.random.default_rng(SEED)
    kept = []
    for c in range(classes):
        members = np.flatnonzero(labels.numpy() == c)
        count = max(round(len(members) * ratio ** (-c / max(classes - 1, 1))), 1)
        kept.append(random.permutation(members)[:count])
    return torch.from_numpy(np.sort(np.concatenate(kept)))
