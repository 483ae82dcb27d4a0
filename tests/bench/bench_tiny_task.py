"""Digits cut down until a run takes a moment: 160 samples, 64-24-24-10."""

from __future__ import annotations

from hybridkit.tasks.digits import load_digits
from hybridkit.tasks.models.mlp import MLP
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.supervised import SupervisedTask

HIDDEN = 24
STEPS = 5  # of an epoch


def _load() -> Splits:
    full = load_digits()
    return Splits(
        train=tuple(part[: 32 * STEPS] for part in full.train),
        validation=tuple(part[:64] for part in full.validation),
        test=tuple(part[:64] for part in full.test),
    )


def tiny() -> SupervisedTask:
    return SupervisedTask(
        name="tiny", load=_load, models={"mlp": lambda: MLP(64, (HIDDEN, HIDDEN), 10)}, source="digits"
    )
