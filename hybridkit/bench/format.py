"""Numbers as people read them; tables on the terminal and in documents show the same text."""

from __future__ import annotations

import math
from collections.abc import Callable

from hybridkit.bench.statistics import Interval


def interval(value: Interval, digits: int = 4) -> str:
    """'0.1234 [0.1200, 0.1300]'; a number that was counted has no interval."""
    return _with_ends(value, lambda x: f"{x:.{digits}f}")


def share(value: Interval) -> str:
    """'12.3 % [10.1, 14.0]'."""
    text = _with_ends(value, lambda x: f"{100 * x:.1f}")
    middle, space, ends = text.partition(" ")
    return f"{middle} %{space}{ends}" if math.isfinite(value.median) else text


def ratio(value: float) -> str:
    """'11.11x'."""
    return f"{value:.2f}x"


def amount(size: int) -> str:
    """Bytes in kB or MB (powers of ten)."""
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def measured(value: Interval, unit: str) -> str:
    """What a claim is compared with."""
    return share(value) if unit == "share" else ratio(value.median)


def _with_ends(value: Interval, number: Callable[[float], str]) -> str:
    def text(x: float) -> str:
        return number(x) if math.isfinite(x) else "never"

    if value.low == value.high:
        return text(value.median)
    return f"{text(value.median)} [{text(value.low)}, {text(value.high)}]"
