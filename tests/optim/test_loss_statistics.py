"""Running statistics against their definitions."""

from __future__ import annotations

import pytest

from hybridkit.optim.statistics import SMOOTHING, Statistics


def smoothed(xs):
    weights = [SMOOTHING**i for i in range(len(xs))]
    return sum(w * x for w, x in zip(weights, reversed(xs), strict=True)) / sum(weights)


def test_equal_the_definitions():
    losses, gradients = [3.0, 2.5, 2.6, 2.0, 1.4], [1.0, 4.0, 2.0, 0.5, 1.0]
    statistics = Statistics()
    for loss, gradient in zip(losses, gradients, strict=True):
        statistics.update(loss, gradient)
    assert statistics.loss == pytest.approx(smoothed(losses))
    assert statistics.loss_trend == pytest.approx(smoothed(losses) - smoothed(losses[:-1]))
    variance = smoothed([g**2 for g in gradients]) - smoothed(gradients) ** 2
    assert statistics.gradient_variance == pytest.approx(variance)


def test_begin_at_zero_trend_and_variance():
    statistics = Statistics()
    statistics.update(5.0, 2.0)
    assert (statistics.loss_trend, statistics.gradient_variance) == (0.0, 0.0)


def test_trend_is_the_slope_of_a_straight_loss():
    statistics = Statistics()
    for step in range(200):
        statistics.update(10 - 0.02 * step, 1.0)
    assert statistics.loss_trend == pytest.approx(-0.02, rel=1e-3)


def test_state_round_trip():
    statistics, other = Statistics(), Statistics()
    statistics.update(1.0, 2.0)
    other.load_state_dict(statistics.state_dict())
    assert other == statistics
