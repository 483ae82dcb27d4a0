"""The search for a budget, on networks whose losses are known: it ends within the budget, and near it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.quant.knapsack import Row, frontier
from hybridkit.quant.search import TRIES, best_of_size, smallest, smallest_within

UNITS, OPTIONS = 12, 6


def rows(seed):
    import random

    draw = random.Random(seed)
    found = []
    for _ in range(UNITS):
        weights, harm = draw.randint(100, 4000), 10 ** draw.uniform(-5, -2)
        costs = tuple(weights * bits for bits in (8, 6, 4, 3, 2, 1))
        found.append(Row(costs, tuple(harm * 4.0**-bits for bits in (8, 6, 4, 3, 2, 1))))
    return found


def network(known, factor, power=1.0, rest=500):
    """What trying options gives where losses are `factor` * harm ** power."""

    def attempt(options):
        chosen = list(zip(known, options, strict=True))
        harm = math.fsum(row.errors[i] for row, i in chosen)
        return rest + sum(row.costs[i] for row, i in chosen), factor * harm**power

    return attempt


@given(st.integers(0, 50), st.floats(0.2, 5), st.floats(0.8, 1.2), st.floats(-5, -3))
@settings(max_examples=60, deadline=None)
def test_it_ends_within_the_budget_and_near_the_smallest(seed, factor, power, exponent):
    known = rows(seed)
    front, attempt, limit = frontier(known), network(known, factor, power), 10**exponent
    tried = smallest_within(front, limit, limit, attempt)
    assert 1 <= len(tried) <= TRIES
    found = smallest(tried, limit)
    possible = [attempt(front.options(place)) for place in range(len(front.costs))]
    right = min((size for size, lost in possible if lost <= limit), default=None)
    if found is None:
        assert right is None or power != 1
    else:
        assert found.lost <= limit
        if power == 1 and len(tried) > 1:
            assert found.bytes <= 1.1 * right


def test_the_best_is_taken_where_nothing_is_good_enough():
    known = rows(0)
    front = frontier(known)
    tried = smallest_within(front, 1e-9, 1e-12, network(known, 100.0))
    assert smallest(tried, 1e-9) is None
    assert tried[0].options == (0,) * UNITS


@given(st.integers(0, 50), st.floats(0.0, 1.0), st.integers(0, 900))
@settings(max_examples=60, deadline=None)
def test_the_file_fits(seed, share, more):
    """A file may have `more` bytes than its options say."""
    known = rows(seed)
    front = frontier(known)
    size = 2000 + int(front.costs[0] + share * (front.costs[-1] - front.costs[0]))
    tried = best_of_size(front, size - 500, size, network(known, 1.0, rest=500 + more))
    assert tried[-1].bytes <= size
    assert tried[-1].expected == pytest.approx(front.errors[front.within(size - 500 - more)], rel=0.5)


def test_what_does_not_fit_is_not_made():
    known = rows(0)
    assert best_of_size(frontier(known), 10, 510, network(known, 1.0)) == []
