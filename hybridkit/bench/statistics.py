"""Medians with bootstrap intervals, percentiles and squared relative errors. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

LEVEL = 0.95
RESAMPLES = 10_000


def _or_never(value: object) -> object:
    """JSON has no infinity: null is minus infinity, the gain of what was never reached."""
    return -math.inf if value is None else value


Number = Annotated[float, BeforeValidator(_or_never)]


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its 95 % bootstrap interval; minus infinity stands for what was never reached."""

    median: Number
    low: Number
    high: Number

    @classmethod
    def exact(cls, value: float) -> Interval:
        """A number that was counted, not sampled."""
        return cls(value, value, value)


def bootstrap_median(values: Sequence[float], *, seed: int = 0) -> Interval:
    """The median of `values` [n >= 1] and its percentile bootstrap interval (Efron 1979).

    Infinities are values that were never reached: they sort last and may become an end of the interval.
    Raises ValueError for no values, or for one that is not a number.
    """
    data = np.asarray(values, np.float64)
    if data.size == 0 or np.isnan(data).any():
        raise ValueError(f"a median needs numbers, not {list(values)}")
    draws = np.random.default_rng(seed).integers(0, data.size, (RESAMPLES, data.size))
    medians = np.sort(_median(data[draws]))
    outside = (1 - LEVEL) / 2
    low = medians[math.floor(outside * (RESAMPLES - 1))]
    high = medians[math.ceil((1 - outside) * (RESAMPLES - 1))]
    return Interval(float(_median(data[None])[0]), float(low), float(high))


def _median(
    rows: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Median of each row; np.median would make a NaN of two infinities."""
    ordered = np.sort(rows, axis=1)
    lower, upper = ordered[:, (rows.shape[1] - 1) // 2], ordered[:, rows.shape[1] // 2]
    with np.errstate(invalid="ignore"):
        return np.where(lower == upper, lower, lower / 2 + upper / 2)


def squared_relative_error(output: Any, reference: Any) -> float:
    """||output - reference||^2 / ||reference||^2 in double precision, for arrays of one shape."""
    reference = np.asarray(reference, np.float64)
    difference = np.asarray(output, np.float64) - reference
    return float(np.square(difference).sum() / np.square(reference).sum())


def latency_percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """The 50th, 90th and 99th percentile of `seconds` [n >= 1]."""
    p50, p90, p99 = np.percentile(np.asarray(seconds, np.float64), (50, 90, 99))
    return float(p50), float(p90), float(p99)
