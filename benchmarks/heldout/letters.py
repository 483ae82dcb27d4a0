"""LetterRecognition: 20,000 printed capital letters, each as 16 measurements of its image.

Frey & Slate 1991, "Letter Recognition Using Holland-Style Adaptive Classifiers".

hybridkit bench convergence --task benchmarks.heldout.letters:letters --steps 1000 --batch-size 128
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.heldout.mlbench import read_table, standardised_splits
from hybridkit.tasks.models.mlp import MLP
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.supervised import SupervisedTask


def letters() -> SupervisedTask:
    """Inputs float32 [batch, 16], standardised by the training part; targets int64 [batch], 0 to 25."""
    return SupervisedTask(
        name="letters", load=load, models={"mlp": network}, source="Debian r-cran-mlbench 2.1-3-1"
    )


letters.version = 1  # raised when data, network or loss give other numbers


def network() -> MLP:
    """16-256-256-26, 0.08 M parameters."""
    return MLP(16, (256, 256), 26)


def load() -> Splits:
    """The fixed splits. Raises FileError if the data are out of reach."""
    return standardised_splits(*read_letters(), part=1 / 12, seed=20_000)


def read_letters() -> tuple[Tensor, Tensor]:
    """Measurements float32 [20000, 16], whole numbers from 0 to 15, and letters int64 [20000]."""
    return read_table("LetterRecognition", "lettr")
