"""Classic tables of numbers, one class a row, as R's package mlbench has them."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from benchmarks.heldout.data import Package, read_files, read_r
from hybridkit.tasks.protocol import Batch, Splits
from hybridkit.tasks.splits import stratified_splits

PACKAGE: Final = Package(  # the data are the same on every architecture
    "r/r-cran-mlbench/r-cran-mlbench_2.1-3-1_amd64.deb",
    "2f1127f7b5e7d08703b13b52ef1976a0c355a7660d6ac575e29b87b13921bc06",
)


def read_table(name: str, target: str) -> tuple[Tensor, Tensor]:
    """All columns but `target`, float32 [rows, columns]; `target`, int64 [rows], classes in R's order.

    Raises FileError if the data are out of reach.
    """
    (content,) = read_files(PACKAGE, f"mlbench/data/{name}.rda")
    table = read_r(content, "rda")[name]
    targets = torch.tensor(table.pop(target).cat.codes.to_numpy(), dtype=torch.int64)
    return torch.tensor(table.to_numpy(), dtype=torch.float32), targets


def standardised_splits(inputs: Tensor, targets: Tensor, *, part: float, seed: int) -> Splits:
    """`part` of every class for validation, as much for test; inputs have mean 0, deviation 1 in the rest."""
    splits = stratified_splits(inputs, targets, validation=part, test=part, seed=seed)
    # in float64, so that the order of the sum, which depends on the processor, does not show
    deviation, mean = (x.float() for x in torch.std_mean(splits.train[0].double(), dim=0))

    def standardised(part: Batch) -> Batch:
        return (part[0] - mean) / deviation, part[1]

    return Splits(*map(standardised, (splits.train, splits.validation, splits.test)))
