"""Small tables that the step's length was developed on; what is held out is elsewhere.

hybridkit bench convergence --task benchmarks.development.tables:glass --steps 400 --batch-size 32
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.heldout.mlbench import class_table, regression, table_task
from hybridkit.tasks.models.mlp import MLP
from hybridkit.tasks.supervised import SupervisedTask

STEPS: Final = (400, 32)  # and the size of batches
OURS: Final = "scikit-learn"


def cancer() -> SupervisedTask:
    """569 x 30, two classes."""
    return table_task("cancer", partial(_bundled, "breast_cancer"), partial(MLP, 30, (128, 128), 2), OURS)


def wine() -> SupervisedTask:
    """178 x 13, three classes."""
    return table_task("wine", partial(_bundled, "wine"), partial(MLP, 13, (128, 128), 3), OURS)


def diabetes() -> SupervisedTask:
    """442 x 10, a regression."""
    read = partial(_bundled, "diabetes")
    return regression(table_task("diabetes", read, partial(MLP, 10, (128, 128), 1), OURS))


def sonar() -> SupervisedTask:
    """208 x 60, two classes."""
    return class_table("Sonar", "Class", 60, 2)


def glass() -> SupervisedTask:
    """214 x 9, six classes."""
    return class_table("Glass", "Type", 9, 6)


def ionosphere() -> SupervisedTask:
    """351 x 34, two classes."""
    return class_table("Ionosphere", "Class", 33, 2, drop=["V2"])  # which is constant


def pima() -> SupervisedTask:
    """768 x 8, two classes."""
    return class_table("PimaIndiansDiabetes", "diabetes", 8, 2)


def _bundled(name: str) -> tuple[Tensor, Tensor]:
    from sklearn import datasets

    load: Callable[..., Any] = getattr(datasets, f"load_{name}")
    inputs, targets = load(return_X_y=True)
    numbers = torch.from_numpy(targets)
    floats = numbers.is_floating_point()
    return torch.from_numpy(inputs).float(), numbers.float() if floats else numbers.long()


for _task in (cancer, wine, diabetes, sonar, glass, ionosphere, pima):
    _task.version = 1  # type: ignore[attr-defined]  # raised when data, network or loss give other numbers
del _task
