"""From what layers are expected to cost a network to a choice that was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from hybridkit.quant.knapsack import Frontier

TRIES: Final = 4
CLOSE: Final = 0.9  # of what may be lost: a choice that uses so much of it is good enough
SAFE: Final = 0.97  # of the harm that would use all of it, if harm and loss were proportional


@dataclass(frozen=True, slots=True)
class Tried:
    """A choice that was made and measured.

    options: for each unit. expected: the sum of the harms. bytes: of the file. lost: as the budget counts it.
    """

    options: tuple[int, ...]
    expected: float
    bytes: int
    lost: float


Try = Callable[[Sequence[int]], tuple[int, float]]  # options to bytes and what was lost


def smallest_within(front: Frontier, limit: float, first: float, attempt: Try) -> list[Tried]:
    """Look for the smallest file that loses at most `limit`; everything tried, in order.

    `first` is the harm that is tried first. Then the harm that may be expected follows from what was lost,
    between the largest that was within the limit and the smallest that was not.
    """
    tried: list[Tried] = []
    good, bad = 0.0, math.inf
    allowed = first
    for _ in range(TRIES):
        place = front.cheapest(allowed)
        place = len(front.costs) - 1 if place is None else place  # the least harm of all
        options = tuple(front.options(place))
        if any(options == each.options for each in tried):
            break
        expected = float(front.errors[place])
        tried.append(Tried(options, expected, *attempt(options)))
        lost = tried[-1].lost
        if lost <= limit:
            good = max(good, expected)
            if lost >= CLOSE * limit or place == 0:
                break
        else:
            bad = min(bad, expected)
        allowed = SAFE * expected * limit / max(lost, 1e-3 * limit)
        if not good < allowed < bad:
            allowed = math.sqrt(good * bad) if good > 0 and bad < math.inf else allowed
    return tried


def best_of_size(front: Frontier, costs: int, size: int, attempt: Try) -> list[Tried]:
    """Look for the choice of least harm whose file has at most `size` bytes; everything tried, in order.

    costs: what its options may cost at first. Where a file comes out too large the next one costs as much
    less.
    """
    tried: list[Tried] = []
    allowed = costs
    for _ in range(TRIES):
        place = front.within(allowed)
        if place is None:
            break
        options = tuple(front.options(place))
        tried.append(Tried(options, float(front.errors[place]), *attempt(options)))
        if tried[-1].bytes <= size:
            break
        allowed = int(front.costs[place]) - (tried[-1].bytes - size)
    return tried


def smallest(tried: Sequence[Tried], limit: float) -> Tried | None:
    """The smallest file that loses at most `limit`, if any does."""
    return min((each for each in tried if each.lost <= limit), key=lambda each: each.bytes, default=None)
