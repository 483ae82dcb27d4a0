"""Charts as inline SVG. Only lines and bands are drawn there, stretched to the width that there is.

Labels are HTML beside the drawing, so that they keep their size on every screen; colours are the page's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from hybridkit.report.data import Chart, Line

SIZE = 1000  # of the drawing's own coordinates
LOGARITHMIC = 20.0  # greatest over least from which an axis is
DOTS = 40  # lines with fewer points have them marked
COLOURS = 5


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to 0..1, and the values that are labelled."""

    place: Callable[[float], float]
    ticks: list[float]


def chart_figure(chart: Chart) -> str:
    """One chart as HTML."""
    across = linear_axis([step for line in chart.lines for step in line.steps], tight=True, whole=True)
    up = value_axis([v for line in chart.lines for v in (*line.values, *line.low, *line.high)])
    drawing = [_grid(across, up)]
    for i, line in enumerate(chart.lines):
        drawing.append(_drawn(line, across, up, f"c{i % COLOURS}"))
    label = f"{chart.title}: {', '.join(line.name for line in chart.lines)} over steps"
    points = [{"name": line.name, "x": line.steps, "y": [_rounded(v) for v in line.values]}
              for line in chart.lines]  # fmt: skip
    shown = {"lines": points, "range": _reach(chart.lines), "percent": chart.percent}
    keys = "".join(
        f'<span class="key c{i % COLOURS}">{escape(line.name)}</span>' for i, line in enumerate(chart.lines)
    )
    ups = "".join(
        f'<span style="top:{100 - 100 * up.place(t):.2f}%">{shown_value(t, chart.percent)}</span>'
        for t in up.ticks
    )
    overs = "".join(f'<span style="left:{100 * across.place(t):.2f}%">{t:,.0f}</span>' for t in across.ticks)
    about = f"<p>{escape(chart.about)}</p>" if chart.about else ""
    return f"""<figure class="chart" data-chart="{escape(json.dumps(shown), quote=True)}">
<figcaption><h3>{escape(chart.title)}</h3>{about}</figcaption>
<div class="keys">{keys if len(chart.lines) > 1 else ""}</div>
<div class="plot"><div class="up" aria-hidden="true">{ups}</div>
<div class="area"><svg viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none" role="img" \
aria-label="{escape(label, quote=True)}">{"".join(drawing)}</svg><i class="cursor"></i>\
<output class="tip"></output></div>
<div class="across" aria-hidden="true">{overs}</div></div>
</figure>"""


def spark(values: Sequence[float | None], colour: str) -> str:
    """A line without axes, for a table's cell."""
    points = [(i, v) for i, v in enumerate(values) if v is not None]
    if len(points) < 2:
        return ""
    low, high = min(v for _, v in points), max(v for _, v in points)
    reach = (high - low) or 1.0
    path = " ".join(
        f"{SIZE * i / (len(values) - 1):.0f} {SIZE * (0.9 - 0.8 * (v - low) / reach):.0f}" for i, v in points
    )
    return (
        f'<svg class="spark" viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="line {colour}" d="M{path}"/></svg>'
    )


def shown_value(value: float, percent: bool = False) -> str:
    """A value as a label: few digits, no more zeros than needed."""
    if percent:
        return f"{100 * value:.3g} %"
    if value and not 1e-4 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def value_axis(values: Sequence[float]) -> Axis:
    """Logarithmic where positive values span much, else linear."""
    low, high = min(values), max(values)
    if low > 0 and high / low > LOGARITHMIC:
        return logarithmic_axis(low, high)
    return linear_axis(values)


def linear_axis(values: Sequence[float], *, tight: bool = False, whole: bool = False) -> Axis:
    """An axis with round ticks; `tight`: it ends where the values do; `whole`: ticks are whole numbers."""
    low, high = float(min(values)), float(max(values))
    if high == low:
        room = abs(low) / 2 or 1.0
        low, high = low - room, high + room
    step = nice((high - low) / 4)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step), math.ceil(high / step)
    if not tight:
        low, high = first * step, last * step
    room = (high - low) * 1e-9
    ticks = [i * step for i in range(first, last + 1) if low - room <= i * step <= high + room]
    return Axis(lambda value: (value - low) / (high - low), ticks)


def logarithmic_axis(low: float, high: float) -> Axis:
    """An axis of powers of ten, with 2 and 5 between where there are few."""
    first, last = math.log10(low), math.log10(high)
    room = 0.03 * (last - first)
    first, last = first - room, last + room
    decades = range(math.floor(first), math.ceil(last) + 1)
    every = max(1, round((last - first) / 6))
    factors = (1, 2, 5) if last - first < 2.5 else (1,)
    ticks = [factor * 10.0**d for d in decades if d % every == 0 for factor in factors]
    ticks = [tick for tick in ticks if first <= math.log10(tick) <= last]
    return Axis(lambda value: (math.log10(value) - first) / (last - first), ticks)


def nice(size: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `size`."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size * (1 - 1e-9))


def _drawn(line: Line, across: Axis, up: Axis, colour: str) -> str:
    parts = []
    if line.low:
        there = _points(line.steps, line.high, across, up)
        back = _points(line.steps[::-1], line.low[::-1], across, up)
        parts.append(f'<path class="band {colour}" d="M{" ".join(there + back)}Z"/>')
    points = _points(line.steps, line.values, across, up)
    parts.append(f'<path class="line {colour}" d="M{" ".join(points)}"/>')
    if len(points) <= DOTS:
        dots = "".join(f"M{point}h0" for point in points)
        parts.append(f'<path class="dots {colour}" d="{dots}"/>')
    return "".join(parts)


def _points(steps: Sequence[int], values: Sequence[float], across: Axis, up: Axis) -> list[str]:
    pairs = zip(steps, values, strict=True)
    return [f"{SIZE * across.place(x):.1f} {SIZE * (1 - up.place(y)):.1f}" for x, y in pairs]


def _grid(across: Axis, up: Axis) -> str:
    lines = [f"M0 {SIZE * (1 - up.place(t)):.1f}H{SIZE}" for t in up.ticks]
    lines += [f"M{SIZE * across.place(t):.1f} 0V{SIZE}" for t in across.ticks]
    return f'<path class="grid" d="{"".join(lines)}"/>'


def _reach(lines: Sequence[Line]) -> list[float]:
    """The steps at the left and right edge, as `linear_axis` has them."""
    steps = [step for line in lines for step in line.steps]
    low, high = float(min(steps)), float(max(steps))
    room = (abs(low) / 2 or 1.0) if low == high else 0.0
    return [low - room, high + room]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
