"""Medians, intervals and percentiles."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.bench.statistics import bootstrap_median, latency_percentiles

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
@given(st.lists(st.floats(0, 10), min_size=1, max_size=30))
def test_latency_percentiles_are_ordered_and_from_the_range(seconds):
    p50, p90, p99 = latency_percentiles(seconds)
    assert min(seconds) <= p50 <= p90 <= p99 <= max(seconds) + 1e-12
    assert p50 == pytest.approx(statistics.median(seconds))
