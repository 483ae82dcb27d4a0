"""One option for each row, so that costs and errors trade off best: the multiple-choice knapsack, whole.

Dynamic programming over the rows keeps, of all partial choices, those that no other one beats in both cost
and error (Nemhauser & Ullmann 1969). What is left at the end is the frontier: the least error for every cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Row:
    """What each option of a row costs, and its error."""

    costs: tuple[int, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Frontier:
    """Whole choices, cheapest first: costs int64 [choices], rising, and errors float64 [choices]."""

    costs: NDArray[np.int64]
    errors: NDArray[np.float64]
    _history: list[tuple[NDArray[np.intp], NDArray[np.intp]]]

    def options(self, choice: int) -> list[int]:
        """Which option each row gets."""
        found, state = [], choice
        for parents, picks in reversed(self._history):
            found.append(int(picks[state]))
            state = int(parents[state])
        return found[::-1]

    def within(self, budget: int) -> int | None:
        """The choice of the least error that costs at most `budget`; None where none is so cheap."""
        allowed = np.flatnonzero(self.costs <= budget)
        return int(allowed[self.errors[allowed].argmin()]) if len(allowed) else None

    def cheapest(self, error: float) -> int | None:
        """The cheapest choice with at most this error; None where there is none."""
        allowed = np.flatnonzero(self.errors <= error)
        return int(allowed[self.costs[allowed].argmin()]) if len(allowed) else None


def frontier(rows: Sequence[Row], budget: int | None = None, cell: int = 1) -> Frontier:
    """All choices that no other one beats, up to `budget`.

    Exact with `cell` 1. Beyond some dozens of rows that can be too many; then partial choices whose costs
    fall into one cell of this size count as equally dear, and only the best of them is kept.
    """
    reserve = sum(min(row.costs) for row in rows)  # the least that the rows still to come cost
    costs, errors = np.zeros(1, np.int64), np.zeros(1)
    history: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for row in rows:
        reserve -= min(row.costs)
        every_cost = (costs[:, None] + np.array(row.costs)).ravel()
        every_error = (errors[:, None] + np.array(row.errors)).ravel()
        order = np.lexsort((every_error, every_cost // cell))
        if budget is not None:
            order = order[every_cost[order] + reserve <= budget]
        least = np.minimum.accumulate(every_error[order])
        better = np.concatenate([[True], every_error[order][1:] < least[:-1]])[: len(order)]
        kept = order[better]
        costs, errors = every_cost[kept], every_error[kept]
        history.append((kept // len(row.costs), kept % len(row.costs)))
    return Frontier(costs, errors, history)
