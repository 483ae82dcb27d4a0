"""LetterRecognition: 20,000 printed capital letters, each as 16 measurements of its image.

Frey & Slate 1991, "Letter Recognition Using Holland-Style Adaptive Classifiers".

hybridkit bench convergence --task benchmarks.heldout.letters:letters --steps 1000 --batch-size 128
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from benchmarks.heldout.data import Package, read_files, read_r
from hybridkit.tasks.models.mlp import MLP
from hybridkit.tasks.protocol import Batch, Splits
from hybridkit.tasks.splits import stratified_splits
from hybridkit.tasks.supervised import SupervisedTask

PACKAGE: Final = Package(  # the data are the same on every architecture
    "r/r-cran-mlbench/r-cran-mlbench_2.1-3-1_amd64.deb",
    "2f1127f7b5e7d08703b13b52ef1976a0c355a7660d6ac575e29b87b13921bc06",
)
SPLIT_SEED: Final = 20_000
PART: Final = 1 / 12  # of every letter, for validation and for test


def letters() -> SupervisedTask:
    """Inputs float32 [batch, 16], standardised by the training part; targets int64 [batch], 0 to 25."""
    return SupervisedTask(
        name="letters", load=load, models={"mlp": network}, source="Debian r-cran-mlbench 2.1-3-1"
    )


def network() -> MLP:
    """16-256-256-26, 0.08 M parameters."""
    return MLP(16, (256, 256), 26)


def load() -> Splits:
    """The splits, fixed by `SPLIT_SEED`. Raises FileError if the data are out of reach."""
    splits = stratified_splits(*read_letters(), validation=PART, test=PART, seed=SPLIT_SEED)
    # in float64, so that the order of the sum, which depends on the processor, does not show
    deviation, mean = (x.float() for x in torch.std_mean(splits.train[0].double(), dim=0))

    def standardised(part: Batch) -> Batch:
        return (part[0] - mean) / deviation, part[1]

    return Splits(*map(standardised, (splits.train, splits.validation, splits.test)))


def read_letters() -> tuple[Tensor, Tensor]:
    """Measurements float32 [20000, 16], whole numbers from 0 to 15, and letters int64 [20000]."""
    (content,) = read_files(PACKAGE, "mlbench/data/LetterRecognition.rda")
    table = read_r(content, "rda")["LetterRecognition"]
    targets = torch.tensor(table.pop("lettr").cat.codes.to_numpy(), dtype=torch.int64)
    return torch.tensor(table.to_numpy(), dtype=torch.float32), targets
