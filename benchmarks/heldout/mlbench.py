"""Classic tables of numbers, one class a row, as R's package mlbench has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.heldout.data import Package, read_files, read_r
from hybridkit.tasks.models.mlp import MLP
from hybridkit.tasks.protocol import Batch, Splits
from hybridkit.tasks.splits import fixed_permutation, stratified_splits
from hybridkit.tasks.supervised import SupervisedTask

SOURCE: Final = "Debian r-cran-mlbench 2.1-3-1"
PACKAGE: Final = Package(  # the data are the same on every architecture
    "r/r-cran-mlbench/r-cran-mlbench_2.1-3-1_amd64.deb",
    "2f1127f7b5e7d08703b13b52ef1976a0c355a7660d6ac575e29b87b13921bc06",
)


def read_table(name: str, target: str, drop: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
    """All columns but `target` and those to drop, float32 [rows, columns], categories by their number.

    `target`: int64 [rows], classes in R's order, or float32 [rows] where it is a number. Raises FileError if
    the data are out of reach.
    """
    (content,) = read_files(PACKAGE, f"mlbench/data/{name}.rda")
    table = read_r(content, "rda")[name].drop(columns=list(drop))
    for column in table:
        if table[column].dtype == "category":
            table[column] = table[column].cat.codes.astype("int64")
    targets = torch.from_numpy(table.pop(target).to_numpy(copy=True))
    numbers = torch.tensor(table.to_numpy(dtype="float64"), dtype=torch.float32)
    return numbers, targets if targets.dtype == torch.int64 else targets.float()


def standardised_splits(inputs: Tensor, targets: Tensor, *, part: float, seed: int) -> Splits:
    """`part` of every class for validation, as much for test; inputs have mean 0, deviation 1 in the rest."""
    splits = stratified_splits(inputs, targets, validation=part, test=part, seed=seed)
    return Splits(*_standardised(splits, 0))


def regression_splits(inputs: Tensor, targets: Tensor, *, part: float, seed: int) -> Splits:
    """`part` of the rows for validation, as much for test, at random; targets [rows, 1] standardised, too."""
    each, order = round(part * len(inputs)), torch.from_numpy(fixed_permutation(len(inputs), seed))
    rows = order.split([each, each, len(order) - 2 * each])
    validation, test, train = ((inputs[some], targets[some, None]) for some in rows)
    return Splits(*_standardised(Splits(train, validation, test), 0, 1))


def _standardised(splits: Splits, *which: int) -> Iterator[Batch]:
    """Training, validation and test part with mean 0 and deviation 1 in the first, of those tensors."""
    # in float64, so that the order of the sum, which depends on the processor, does not show
    found = [torch.std_mean(splits.train[place].double(), dim=0) for place in which]
    for part in (splits.train, splits.validation, splits.test):
        tensors = list(part)
        for place, (deviation, mean) in zip(which, found, strict=True):
            tensors[place] = (tensors[place] - mean.float()) / deviation.float()
        yield tuple(tensors)


def table_task(
    name: str, read: Callable[[], tuple[Tensor, Tensor]], network: Callable[[], nn.Module], source: str
) -> SupervisedTask:
    """A sixth of a table for validation and for test each, at random where targets are numbers."""

    def load() -> Splits:
        inputs, targets = read()
        cut = regression_splits if targets.is_floating_point() else standardised_splits
        return cut(inputs, targets, part=1 / 6, seed=len(inputs))

    return SupervisedTask(name=name, load=load, models={"mlp": network}, source=source)


def class_table(
    table: str, target: str, columns: int, classes: int, *, width: int = 128, drop: Sequence[str] = ()
) -> SupervisedTask:
    """A table's classes, by two hidden layers."""
    network = partial(MLP, columns, (width, width), classes)
    return table_task(table.lower(), partial(read_table, table, target, drop), network, SOURCE)


def regression(task: SupervisedTask) -> SupervisedTask:
    """The same task with the mean squared error, of standardised targets, as loss and metric."""
    return dataclasses.replace(task, loss_function=F.mse_loss, measures={}, metric="loss", metric_goal="min")
