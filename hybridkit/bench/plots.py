"""The pictures of a bench, as PNG files. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hybridkit.bench.convergence.methods import BASELINE, TUNED
from hybridkit.bench.convergence.methods import OURS as METHOD
from hybridkit.bench.convergence.summary import ConvergenceResult, MethodResult
from hybridkit.bench.inference import InferenceResult, LatencyResult
from hybridkit.bench.quantization import QuantizationResult
from hybridkit.bench.results import BenchResults
from hybridkit.bench.variants import NAMES

# Okabe and Ito's palette: distinct also for readers who do not see all colours.
OURS: Final = "#D55E00"
ADAMW: Final = "#555555"
RIVALS: Final = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TRAINED: Final = {TUNED: ADAMW, METHOD: OURS}
AFTERWARDS: Final = "#56B4E9"
PEERS: Final = dict(zip(NAMES, ("#B08A5B", "#555555", "#0072B2", "#009E73", "#CC79A7"), strict=True))


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write_plots(results: BenchResults, folder: Path) -> list[Path]:
    """One file per section that was measured. Raises FileError if one cannot be written."""
    from hybridkit.packing.atomic import atomic_file

    drawings: list[tuple[str, Callable[[Any], None]]] = []
    heights = {"latency.png": 8.0}
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
        figure = _figure(heights.get(name, 4.5))
        draw(figure)
        with atomic_file(folder / name) as file:
            figure.savefig(file, format="png", dpi=120)
        written.append(folder / name)
    return written


def _figure(height: float) -> Any:
    """A figure without a window, whatever backend the user has configured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_convergence(figure: Any, result: ConvergenceResult) -> None:
    """Validation loss over steps: median lines in 95 % bands, one panel per precision."""
    precisions = list(dict.fromkeys(row.precision for row in result.methods))
    rivals = list(dict.fromkeys(row.method for row in result.methods if row.tuning))
    colours = {name: RIVALS[i % len(RIVALS)] for i, name in enumerate(rivals)}
    colours |= {BASELINE: ADAMW, METHOD: OURS}
    panels = figure.subplots(1, len(precisions), squeeze=False, sharey=True)[0]
    for panel, precision in zip(panels, precisions, strict=True):
        for row in (r for r in result.methods if r.precision == precision):
            _curve(panel, row, colours[row.method])
        panel.set(title=f"{precision} weights", xlabel="step")
        logarithmic(panel)
        panel.grid(alpha=0.3, which="both")
        panel.legend(frameon=False, title="method (learning rate)", alignment="left")
    panels[0].set_ylabel("validation loss")
    figure.suptitle(f"{result.task}: median of {len(result.seeds)} seeds, 95 % bootstrap bands")


def _curve(panel: Any, row: MethodResult, colour: str) -> None:
    curve, style = row.curve, "-" if row.method == METHOD else "--"
    label = f"{row.method} ({row.lr:g})"
    panel.plot(curve.steps, curve.median, style, color=colour, label=label, linewidth=1.6)
    panel.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)


def logarithmic(panel: Any) -> None:
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
        colours = [TRAINED[row.method] if row.trained else AFTERWARDS for row in rows]
        heights = [row.error.median for row in rows]
        bars = [
            [row.error.median - row.error.low for row in rows],
            [row.error.high - row.error.median for row in rows],
        ]
        panel.bar(names, heights, yerr=bars, color=colours, capsize=5, width=0.65, ecolor="#222222")
        panel.set(title=f"{precision} weights", ylim=(0, 1.15 * max(row.error.high for row in rows)))
        panel.grid(alpha=0.3, axis="y")
        panel.set_axisbelow(True)
    panels[0].set_ylabel("squared relative output error")
    figure.suptitle(
        f"{result.task}: packed network against its full-precision counterpart, "
        f"median of {len(result.seeds)} seeds, 95 % intervals"
    )


def draw_latency(figure: Any, result: InferenceResult) -> None:
    """Median latency with a mark at the 99th percentile: a column per number of threads, cold below warm."""
    threads = list(dict.fromkeys(row.threads for row in result.latencies))
    caches = list(dict.fromkeys(row.cold for row in result.latencies))
    panels = figure.subplots(len(caches), len(threads), squeeze=False, sharex="col", sharey=True)
    names = [variant.variant for variant in result.variants]
    for line, cold in zip(panels, caches, strict=True):
        for panel, count in zip(line, threads, strict=True):
            rows = [r for r in result.latencies if (r.threads, r.cold) == (count, cold)]
            _bars(panel, rows, names)
            panel.set(title=f"{count} thread{'s' if count > 1 else ''}, {'cold' if cold else 'warm'} caches")
        line[0].set_ylabel("milliseconds")
    least = min(row.timing.p50_ms for row in result.latencies)
    most = max(row.timing.p99_ms for row in result.latencies)
    panels[0][0].set_ylim(10 ** math.floor(math.log10(least / 2)), 1.5 * most)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(names))
    figure.suptitle(f"Latency of {result.model} (bar: median, mark: 99th percentile)")


def _bars(panel: Any, rows: Sequence[LatencyResult], names: Sequence[str]) -> None:
    """A group of bars per batch size, one of each variant."""
    width = 0.86 / len(names)
    batches = list(dict.fromkeys(row.batch for row in rows))
    for i, name in enumerate(names):
        mine = [row for row in rows if row.variant == name]
        at = [b - 0.43 + width * (i + 0.5) for b in range(len(mine))]
        heights = [row.timing.p50_ms for row in mine]
        tails = [max(row.timing.p99_ms - row.timing.p50_ms, 0.0) for row in mine]
        colour = OURS if i == 0 else PEERS[name]
        errors: dict[str, Any] = {"yerr": [[0.0] * len(mine), tails], "capsize": 2, "ecolor": "#222222"}
        bars = panel.bar(at, heights, width * 0.92, color=colour, label=name, **errors)
        panel.bar_label(
            bars, fmt="%.3g", fontsize=7, label_type="center", rotation=90, color="white", fontweight="bold"
        )
    panel.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    logarithmic(panel)
    panel.grid(alpha=0.3, axis="y", which="both")
    panel.set_axisbelow(True)
