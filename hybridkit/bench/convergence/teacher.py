"""The teacher of the distilled setting: full precision, trained as a rival is, and three times as long.

The bench trains it as a step of its own (`prepare`), and keeps it in the cache; who names it only loads it.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hybridkit.bench.convergence.identity import key
from hybridkit.errors import UsageError
from hybridkit.tasks.resolve import make_model, make_task
from hybridkit.training.config import TrainConfig, resolve
from hybridkit.training.trainer import Trainer


def config() -> TrainConfig:
    """1,200 steps of AdamW with a cosine on the task's own network."""
    return resolve(
        task="fashion-mnist",
        lr=3e-3,
        lr_controller="cosine",
        max_steps=1_200,
        batch_size=64,
        seed=1_000,
        threads=1,
    )


def path() -> Path:
    """Where its weights are kept: by what it is and by the versions of what trained it."""
    root = os.environ.get("HYBRIDKIT_BENCH_CACHE") or "~/.cache/hybridkit-bench"
    name = hashlib.sha256(key(config()).encode()).hexdigest()[:12]
    return Path(root).expanduser() / f"teacher-{name}.safetensors"


def prepare() -> None:
    """Train it and keep it."""
    from safetensors.torch import save

    from hybridkit.packing.atomic import atomic_file

    trainer = Trainer.seeded(config())
    while not trainer.done:
        trainer.step()
    path().parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path()) as file:
        file.write(save(trainer.model.state_dict()))


def fashion_mnist() -> nn.Module:
    """The trained network. Raises UsageError where it was not prepared."""
    from safetensors.torch import load_file

    if not path().is_file():
        raise UsageError("the teacher was not trained yet: hybridkit bench convergence --full does it")
    with _generators_kept():
        model = make_model(make_task("fashion-mnist"))
    model.load_state_dict(load_file(path()))
    return model


@contextmanager
def _generators_kept() -> Iterator[None]:
    """What a run draws must not depend on how its teacher came to be."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
