"""Bits where a network needs them, to a budget: of what may be lost, or of bytes.

1. What each layer costs the network under each option is measured on its output (harm.py).
2. The options that add up best for every size are found exactly (quant/knapsack.py).
3. What that gives is calibrated, written, and measured through its file (making.py, quality.py), since harms
   do not quite add up. Where it misses the budget, or leaves much of it, the next try is for another sum of
   harms (quant/search.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from torch import nn

from hybridkit.budget.harm import Probe, harms, outputs_of
from hybridkit.budget.making import (
    Made,
    Maker,
    Seen,
    Storage,
    chosen,
    file_bytes,
    matrix_shape,
    units_of,
)
from hybridkit.budget.options import OPTIONS
from hybridkit.budget.quality import Quality, distance_from
from hybridkit.quant.budgets import Budget, BudgetReport, Choices, spend
from hybridkit.quant.calibration import Tuning
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.knapsack import Row
from hybridkit.tasks.data import count
from hybridkit.tasks.protocol import Task
from hybridkit.tasks.samples import Samples, draw

__all__ = ["Budget", "BudgetReport", "Storage", "quantize_within"]

PROBE: Final = 1_024  # tokens on which layers are tried one by one, about


def quantize_within(
    network: nn.Module,
    task: Task,
    samples: Samples,
    config: QuantConfig,
    budget: Budget,
    output: Path,
    *,
    tuning: Tuning,
    storage: Storage,
    tried: Callable[[int, int], None] = lambda unit, units: None,
    seen: Seen = lambda number, doing, done, of: None,
) -> tuple[Made, BudgetReport]:
    """Write the file that suits the budget to `output`; the network stays as it is.

    config: the quantizers of layers that it names are kept to, all others are chosen. `tried` is called after
    each layer that was tried on its own, `seen` after each block that was calibrated, and each step on all.

    Raises GateError, and writes nothing, where nothing within the budget was found.
    """
    units = units_of(network, config, samples)
    quality = Quality(task, network, sum(map(count, samples.batches)))
    costs = [[o.bytes(matrix_shape(unit), storage.codec, storage.half) for o in OPTIONS] for unit in units]
    harm = harms(network, units, OPTIONS, _probe(network, task), lambda unit: tried(unit + 1, len(units)))

    def configured(picks: Sequence[int]) -> QuantConfig:
        return chosen(config, units, OPTIONS, picks)

    whole = file_bytes(network, configured([0] * len(units)), storage)
    choices = Choices(
        [Row(tuple(c), tuple(h)) for c, h in zip(costs, harm.tolist(), strict=True)],
        [N * K for N, K in map(matrix_shape, units)],
        [option.label for option in OPTIONS],
        whole - sum(row[0] for row in costs),
    )
    with Maker(network, samples, configured, tuning, quality, output, storage, seen) as maker:
        report = spend(choices, budget, quality.metric, quality.likely_harm, maker)
        return maker.take(report.taken), report


def _probe(network: nn.Module, task: Task) -> Probe:
    few = draw(task, 32, PROBE)
    inputs, counted = few.inputs[:1], few.counted[:1]
    return Probe(inputs, counted, distance_from(outputs_of(network, inputs), counted))
