"""Budgets of loss or of bytes, and what a search for one found. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from hybridkit.errors import GateError, UsageError
from hybridkit.quant.knapsack import Frontier, Row, frontier
from hybridkit.quant.search import Tried, Try, best_of_size, smallest, smallest_within

CELLS: Final = 20_000  # sizes that are told apart
SHOWN: Final = 12  # points of the frontier
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be lost, as a share, or how many bytes the file may have: one of them."""

    within: float | None = None
    size: int | None = None

    @classmethod
    def parse(cls, within: str | None, size: str | None) -> Budget:
        """`1%`, or `40MB` (K, M, G of 1000; Ki, Mi, Gi of 1024). Raises UsageError for anything else."""
        if within is not None and size is not None:
            raise UsageError("--within and --max-size are two budgets; say one of them")
        return cls(None if within is None else _share(within), None if size is None else _bytes(size))


@dataclass(frozen=True, slots=True)
class Point:
    """A choice on the frontier: bytes of its file, the sum of its harms, the weights by option as shares."""

    bytes: int
    expected: float
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """What a search found.

    metric: what losses are shares of; `cosine`: that it lacks to 1. frontier: some points, cheapest first.
    tried: in order. taken: the number of the one that was kept.
    """

    metric: str
    budget: Budget
    frontier: tuple[Point, ...]
    tried: tuple[Tried, ...]
    taken: int


@dataclass(frozen=True, slots=True)
class Choices:
    """What is chosen from: a row of costs and harms for each unit, and its number of weights.

    labels: of the options. rest: bytes of a file beyond the units.
    """

    rows: Sequence[Row]
    weights: Sequence[int]
    labels: Sequence[str]
    rest: int


def spend(
    choices: Choices, budget: Budget, metric: str, likely_harm: Callable[[float], float], attempt: Try
) -> BudgetReport:
    """Search for the choice that suits the budget; `attempt` makes and measures one.

    likely_harm: the sum of harms that probably loses a share. Raises GateError where no choice is within it.
    """
    front = frontier(choices.rows, cell=max(sum(max(row.costs) for row in choices.rows) // CELLS, 1))
    if budget.within is not None:
        tried = smallest_within(front, budget.within, likely_harm(budget.within), attempt)
        best = smallest(tried, budget.within)
    else:
        size = budget.size or 0
        tried = best_of_size(front, size - choices.rest, size, attempt)
        best = next((each for each in tried if each.bytes <= size), None)
    if best is None:
        raise GateError(_missed(budget, tried, metric, int(front.costs[0]) + choices.rest))
    return BudgetReport(metric, budget, _points(front, choices), tuple(tried), tried.index(best))


def _points(front: Frontier, choices: Choices) -> tuple[Point, ...]:
    """Some of the frontier, each so many times larger than the one before."""
    steps = np.geomspace(max(front.costs[0], 1), front.costs[-1], SHOWN)
    places = sorted({int(np.abs(front.costs - step).argmin()) for step in steps})
    return tuple(
        Point(
            int(front.costs[place]) + choices.rest,
            float(front.errors[place]),
            _shares(front.options(place), choices),
        )
        for place in places
    )


def _shares(picks: Sequence[int], choices: Choices) -> dict[str, float]:
    """How many of the weights get which option, in the order of the options."""
    found = dict.fromkeys(choices.labels, 0)
    for pick, weights in zip(picks, choices.weights, strict=True):
        found[choices.labels[pick]] += weights
    return {label: count / sum(choices.weights) for label, count in found.items() if count}


def _missed(budget: Budget, tried: Sequence[Tried], metric: str, least: int) -> str:
    if budget.within is None:
        return f"no choice fits into {budget.size:,} bytes: the smallest has {least:,}; allow more"
    best = min(tried, key=lambda each: each.lost)
    return (
        f"nothing within {budget.within:.3g} of {metric} was found: of {len(tried)} tries the best lost "
        f"{best.lost:.3g} with {best.bytes:,} bytes; allow more, or give more samples"
    )


def _share(text: str) -> float:
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not (text.strip().endswith("%") and 0 < share <= 1):
        raise UsageError(f"--within {text}: say how much may be lost, as in 1%")
    return share


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?I?)B?", text.strip().upper())
    if not found or found[2] not in _UNITS or not float(found[1]):
        raise UsageError(f"--max-size {text}: say a number of bytes, as in 40MB")
    return int(float(found[1]) * _UNITS[found[2]])
