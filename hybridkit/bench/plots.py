"""The pictures of a bench, as PNG files. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hybridkit.bench.convergence import ArmResult, ConvergenceResult
from hybridkit.bench.inference import InferenceResult
from hybridkit.bench.quantization import QuantizationResult
from hybridkit.bench.results import BenchResults
from hybridkit.bench.runs import ARMS, BASELINE, UNTUNED

# Okabe and Ito's palette: distinct also for readers who do not see all colours.
COLOURS: Final = dict(zip(ARMS, ("#555555", "#999999", "#0072B2", "#E69F00", "#D55E00"), strict=True))
AFTERWARDS: Final = "#56B4E9"
PACKED, TWIN = "#D55E00", "#555555"


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write_plots(results: BenchResults, folder: Path) -> list[Path]:
    """One file per section that was measured. Raises FileError if one cannot be written."""
    from hybridkit.packing.atomic import atomic_file

    drawings: list[tuple[str, Callable[[Any], None]]] = []
    if results.convergence:
        convergence = results.convergence
        drawings.append(("convergence.png", lambda figure: draw_convergence(figure, convergence)))
    if results.quantization:
        quantization = results.quantization
        drawings.append(("quantization-error.png", lambda figure: draw_errors(figure, quantization)))
    if results.inference:
        inference = results.inference
        drawings.append(("latency.png", lambda figure: draw_latency(figure, inference)))
    written = []
    for name, draw in drawings:
        figure = _figure()
        draw(figure)
        with atomic_file(folder / name) as file:
            figure.savefig(file, format="png", dpi=120)
        written.append(folder / name)
    return written


def _figure() -> Any:
    """A figure without a window, whatever backend the user has configured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_convergence(figure: Any, result: ConvergenceResult) -> None:
    """Validation loss over steps: median lines in 95 % bands, one panel per precision."""
    precisions = list(dict.fromkeys(arm.precision for arm in result.arms))
    panels = figure.subplots(1, len(precisions), squeeze=False, sharey=True)[0]
    for panel, precision in zip(panels, precisions, strict=True):
        for arm in (a for a in result.arms if a.precision == precision):
            _curve(panel, arm)
        panel.set(title=f"{precision} weights", xlabel="step")
        _logarithmic(panel)
        panel.grid(alpha=0.3, which="both")
        panel.legend(frameon=False, title="arm (learning rate)", alignment="left")
    panels[0].set_ylabel("validation loss")
    figure.suptitle(f"{result.task}: median of {len(result.seeds)} seeds, 95 % bootstrap bands")


def _curve(panel: Any, arm: ArmResult) -> None:
    colour, curve = COLOURS[arm.arm], arm.curve
    style = "--" if arm.arm in (BASELINE, UNTUNED) else "-"
    panel.plot(curve.steps, curve.median, style, color=colour, label=f"{arm.arm} ({arm.lr:g})", linewidth=1.6)
    panel.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)


def _logarithmic(panel: Any) -> None:
    """A logarithmic y axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def draw_errors(figure: Any, result: QuantizationResult) -> None:
    """Quantisation error of each method: bars with their intervals, one panel per precision."""
    precisions = list(dict.fromkeys(row.precision for row in result.errors))
    panels = figure.subplots(1, len(precisions), squeeze=False)[0]
    for panel, precision in zip(panels, precisions, strict=True):
        rows = [row for row in result.errors if row.precision == precision]
        names = [f"{row.method}\n{'QAT' if row.trained else 'after training'}" for row in rows]
        colours = [COLOURS[row.method] if row.trained else AFTERWARDS for row in rows]
        heights = [row.error.median for row in rows]
        reach = [
            [row.error.median - row.error.low for row in rows],
            [row.error.high - row.error.median for row in rows],
        ]
        panel.bar(names, heights, yerr=reach, color=colours, capsize=5, width=0.65, ecolor="#222222")
        panel.set(title=f"{precision} weights", ylim=(0, 1.15 * max(row.error.high for row in rows)))
        panel.grid(alpha=0.3, axis="y")
        panel.set_axisbelow(True)
    panels[0].set_ylabel("relative squared output error")
    figure.suptitle(
        f"{result.task}: packed network against its fp32 twin, median of {len(result.seeds)} seeds, "
        "95 % intervals"
    )


def draw_latency(figure: Any, result: InferenceResult) -> None:
    """Median latency with a mark at the 99th percentile, one panel per number of threads."""
    threads = list(dict.fromkeys(row.threads for row in result.latencies))
    panels = figure.subplots(1, len(threads), squeeze=False, sharey=True)[0]
    names = [variant.variant for variant in result.variants]
    width = 0.8 / len(names)
    for panel, count in zip(panels, threads, strict=True):
        for i, name in enumerate(names):
            rows = [r for r in result.latencies if r.threads == count and r.variant == name]
            at = [b - 0.4 + width * (i + 0.5) for b in range(len(rows))]
            heights = [row.timing.p50_ms for row in rows]
            tails = [max(row.timing.p99_ms - row.timing.p50_ms, 0.0) for row in rows]
            bars = panel.bar(
                at,
                heights,
                width * 0.92,
                yerr=[[0.0] * len(rows), tails],
                color=(PACKED, TWIN)[i],
                capsize=4,
                ecolor="#222222",
                label=name,
            )
            panel.bar_label(bars, fmt="%.3g", fontsize=8, label_type="center", color="white")
        batches = [row.batch for row in result.latencies if row.threads == count and row.variant == names[0]]
        panel.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
        panel.set(title=f"{count} thread{'s' if count > 1 else ''}")
        _logarithmic(panel)
        panel.grid(alpha=0.3, axis="y", which="both")
        panel.set_axisbelow(True)
    least = min(row.timing.p50_ms for row in result.latencies)
    most = max(row.timing.p99_ms for row in result.latencies)
    panels[0].set_ylim(10 ** math.floor(math.log10(least / 2)), 8 * most)  # room for the legend
    panels[0].set_ylabel("milliseconds (bar: median, mark: 99th percentile)")
    panels[0].legend(frameon=False, loc="upper left")
    figure.suptitle(f"Latency of {result.model}")
