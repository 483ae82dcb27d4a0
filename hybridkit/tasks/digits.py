"""Handwritten digits: scikit-learn's 1,797 images of 8 x 8 pixels (Alpaydin & Kaynak 1998)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybridkit.tasks.models.mlp import MLP
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.splits import stratified_splits
from hybridkit.tasks.supervised import SupervisedTask

SPLIT_SEED = 1797


class Digits(SupervisedTask):
    """Inputs float32 [batch, 64] in [0, 1], targets int64 [batch] in 0..9; 70 / 10 / 20 % of every class."""

    def __init__(self) -> None:
        super().__init__(
            name="digits", load=load_digits, models={"mlp": digits_mlp}, source="scikit-learn load_digits"
        )


def load_digits() -> Splits:
    """The splits, fixed by `SPLIT_SEED`; pixels (0 to 16) scaled to [0, 1]."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    inputs: Tensor = torch.tensor(pixels, dtype=torch.float32) / 16
    return stratified_splits(inputs, torch.tensor(labels, dtype=torch.int64), seed=SPLIT_SEED)


def digits_mlp() -> nn.Module:
    """64-512-512-10, 0.3 M parameters: nearly all in layers that are quantised."""
    return MLP(64, (512, 512), 10)
