"""Satellite: 6,435 places in a Landsat image, 3 x 3 pixels in four bands each, by what grows or lies there.

Michie, Spiegelhalter & Taylor 1994, "Machine Learning, Neural and Statistical Classification" (Statlog).

hybridkit bench convergence --task benchmarks.heldout.satellite:satellite --steps 600 --batch-size 64
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.heldout.mlbench import read_table, standardised_splits
from hybridkit.tasks.models.mlp import MLP
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.supervised import SupervisedTask


def satellite() -> SupervisedTask:
    """Inputs float32 [batch, 36], standardised by the training part; targets int64 [batch], 0 to 5."""
    return SupervisedTask(
        name="satellite", load=load, models={"mlp": network}, source="Debian r-cran-mlbench 2.1-3-1"
    )


satellite.version = 1  # raised when data, network or loss give other numbers


def network() -> MLP:
    """36-256-256-6, 0.08 M parameters."""
    return MLP(36, (256, 256), 6)


def load() -> Splits:
    """The fixed splits. Raises FileError if the data are out of reach."""
    return standardised_splits(*read_satellite(), part=1 / 6, seed=6_435)


def read_satellite() -> tuple[Tensor, Tensor]:
    """Reflectances float32 [6435, 36], whole numbers, and classes int64 [6435]."""
    return read_table("Satellite", "classes")
