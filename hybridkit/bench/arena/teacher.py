"""The teacher of the distilled cell: full precision, trained as a rival is, and three times as long."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from hybridkit.training.config import resolve
from hybridkit.training.trainer import Trainer


@functools.cache
def fashion_mnist() -> nn.Module:
    """The task's own network after 1,200 steps of AdamW with a cosine; trained once in each process."""
    with _generators_kept():
        trainer = Trainer.seeded(
            resolve(
                task="fashion-mnist",
                lr=3e-3,
                lr_controller="cosine",
                max_steps=1_200,
                batch_size=64,
                seed=1_000,
                threads=1,
            )
        )
        while not trainer.done:
            trainer.step()
    return trainer.model


@contextmanager
def _generators_kept() -> Iterator[None]:
    """A run must not depend on whether its process has trained the teacher already."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
