"""Medians, intervals and when a curve reaches a level."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.bench.convergence import gain
from hybridkit.bench.statistics import bootstrap_median, first_reach, latency_percentiles

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9)
quickly = settings(max_examples=25, deadline=None)


@quickly
@given(NUMBERS)
def test_the_interval_holds_the_median_and_lies_within_the_data(values):
    found = bootstrap_median(values)
    assert found.median == pytest.approx(statistics.median(values))
    assert min(values) <= found.low <= found.median + 1e-9
    assert found.median - 1e-9 <= found.high <= max(values)


def test_intervals_cover_a_known_median_about_as_often_as_they_say():
    generator = np.random.default_rng(1)
    samples = generator.exponential(size=(60, 25))
    hits = sum(i.low <= math.log(2) <= i.high for i in (bootstrap_median(list(row)) for row in samples))
    assert 48 <= hits <= 60


def test_the_same_values_give_the_same_interval():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert bootstrap_median(values) == bootstrap_median(values)
    assert bootstrap_median(values, seed=1).median == 4.0


def test_what_was_never_reached_may_be_an_end_or_the_median():
    assert bootstrap_median([-math.inf, 0.1, 0.2, 0.3, 0.4]).low == -math.inf
    assert bootstrap_median([-math.inf, -math.inf, 0.1]).median == -math.inf
    assert bootstrap_median([-math.inf]).high == -math.inf


@pytest.mark.parametrize("values", [[], [1.0, math.nan]])
def test_no_median_without_numbers(values):
    with pytest.raises(ValueError, match="needs numbers"):
        bootstrap_median(values)


@quickly
@given(NUMBERS, st.floats(-1e6, 1e6))
def test_first_reach_is_the_first_index_at_or_below(losses, target):
    found = first_reach(losses, target)
    expected = [i for i, loss in enumerate(losses) if loss <= target]
    assert found == (expected[0] if expected else None)


@pytest.mark.parametrize(
    ("losses", "base", "expected"),
    [
        ([4, 2, 1, 1], [4, 3, 2, 1], 1 / 3),  # there after 20 steps, the baseline after 30
        ([4, 3, 2, 1], [4, 3, 2, 1], 0.0),
        ([4, 3, 3, 2], [4, 3, 2, 1], -math.inf),  # never there
        ([4, 4, 4, 1], [4, 1, 0.5, 1], -2.0),  # the baseline was there after 10 steps already
        ([1, 2, 2, 2], [4, 3, 2, 1], 1.0),  # there from the start
        ([1, 2, 2, 2], [1, 2, 2, 1], 0.0),  # both there from the start
        ([4, 1, 1, 1], [1, 2, 2, 1], -math.inf),
    ],
)
def test_gain_compares_when_both_reach_the_baselines_last_loss(losses, base, expected):
    cost = [0, 10, 20, 30]
    assert gain(losses, cost, base, cost) == pytest.approx(expected)


@quickly
@given(st.lists(st.floats(0, 10), min_size=1, max_size=30))
def test_latency_percentiles_are_ordered_and_from_the_range(seconds):
    p50, p90, p99 = latency_percentiles(seconds)
    assert min(seconds) <= p50 <= p90 <= p99 <= max(seconds) + 1e-12
    assert p50 == pytest.approx(statistics.median(seconds))
