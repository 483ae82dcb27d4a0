"""The knapsack: what trying everything finds, and no choice that another one beats."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.quant.knapsack import Row, frontier

OPTIONS = 6
rows = st.lists(
    st.builds(
        Row,
        st.lists(st.integers(1, 10**6), min_size=OPTIONS, max_size=OPTIONS).map(tuple),
        st.lists(st.floats(0, 1e3), min_size=OPTIONS, max_size=OPTIONS).map(tuple),
    ),
    min_size=1,
    max_size=4,
)
shares = st.floats(0, 1.2)


def cost(rows, choice):
    return sum(c.costs[i] for c, i in zip(rows, choice, strict=True))


def error(rows, choice):
    return math.fsum(c.errors[i] for c, i in zip(rows, choice, strict=True))


def budget_of(rows, share):
    """From what the cheapest choice costs (0) to what the dearest does (1)."""
    least, most = (sum(pick(c.costs) for c in rows) for pick in (min, max))
    return least + int(share * (most - least))


def choose(rows, budget):
    found = frontier(rows, budget)
    return found.options(found.within(budget))


@given(rows, shares)
@settings(max_examples=80, deadline=None)
def test_equals_trying_everything(rows, share):
    budget = budget_of(rows, share)
    choice = choose(rows, budget)
    assert cost(rows, choice) <= budget
    every = itertools.product(range(OPTIONS), repeat=len(rows))
    best = min(error(rows, c) for c in every if cost(rows, c) <= budget)
    assert error(rows, choice) == pytest.approx(best, rel=1e-9, abs=1e-12)


@given(rows, shares)
@settings(max_examples=80, deadline=None)
def test_no_candidate_for_all_alike_is_better(rows, share):
    budget = budget_of(rows, share)
    found = error(rows, choose(rows, budget))
    for i in range(OPTIONS):
        uniform = [i] * len(rows)
        if cost(rows, uniform) <= budget:
            assert found <= error(rows, uniform) * (1 + 1e-12)


@given(rows, shares, shares)
@settings(max_examples=60, deadline=None)
def test_a_larger_budget_never_costs_quality(rows, one, other):
    low, high = (budget_of(rows, share) for share in sorted((one, other)))
    assert error(rows, choose(rows, high)) <= error(rows, choose(rows, low)) + 1e-9


def test_many_rows_are_no_problem():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 10**6, (16,), generator=generator).tolist()
    errors = torch.rand(16, 5, generator=generator).sort(descending=True).values.tolist()
    many = [
        Row(tuple(n * w for w in (100, 158, 200, 400, 800)), tuple(n * x for x in e))
        for n, e in zip(sizes, errors, strict=True)
    ]
    assert cost(many, choose(many, 250 * sum(sizes))) <= 250 * sum(sizes)


@given(rows)
@settings(max_examples=60, deadline=None)
def test_the_frontier_is_all_that_nothing_beats(rows):
    found = frontier(rows)
    every = [(cost(rows, c), error(rows, c)) for c in itertools.product(range(OPTIONS), repeat=len(rows))]
    assert (np.diff(found.costs) > 0).all()
    assert (np.diff(found.errors) < 0).all()
    for place, (dear, wrong) in enumerate(zip(found.costs, found.errors, strict=True)):
        options = found.options(place)
        assert (cost(rows, options), error(rows, options)) == (
            dear,
            pytest.approx(wrong, rel=1e-9, abs=1e-12),
        )
        assert wrong <= min(e for c, e in every if c <= dear) * (1 + 1e-9) + 1e-12


@given(rows, st.floats(0, 4e3))
@settings(max_examples=60, deadline=None)
def test_the_cheapest_is_found(rows, allowed):
    found = frontier(rows)
    place = found.cheapest(allowed)
    every = itertools.product(range(OPTIONS), repeat=len(rows))
    right = [cost(rows, c) for c in every if error(rows, c) <= allowed - 1e-9]
    if place is None:
        assert not right
    else:
        assert found.errors[place] <= allowed
        assert not right or found.costs[place] <= min(right)


@given(rows, st.integers(1, 10**5))
@settings(max_examples=40, deadline=None)
def test_cells_keep_real_costs_and_lose_little(rows, cell):
    exact, coarse = frontier(rows), frontier(rows, cell=cell)
    for place, dear in enumerate(coarse.costs):
        options = coarse.options(place)
        assert cost(rows, options) == dear
        assert error(rows, options) == pytest.approx(coarse.errors[place], rel=1e-9, abs=1e-12)
    for dear, wrong in zip(exact.costs, exact.errors, strict=True):
        assert coarse.errors[coarse.within(int(dear) + len(rows) * cell)] <= wrong + 1e-9


def test_nothing_is_so_cheap():
    found = frontier([Row((3, 5), (1.0, 0.5))])
    assert found.within(2) is None
    assert found.cheapest(0.4) is None
