"""`hybridkit quantize --within` and `--max-size`: what is shown of a search for a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hybridkit.cli._calibrate import Data, task_of
from hybridkit.cli._shared import progress
from hybridkit.errors import UsageError
from hybridkit.sources.protocol import Source

if TYPE_CHECKING:
    from rich.table import Table

    from hybridkit.budget.making import Made, Storage
    from hybridkit.quant.budgets import Budget, BudgetReport
    from hybridkit.quant.calibration import Tuning
    from hybridkit.quant.config import QuantConfig


def budgeted(
    found: Source,
    config: QuantConfig,
    data: Data,
    tuning: Tuning,
    budget: Budget,
    storage: Storage,
    output: Path,
) -> tuple[Made, BudgetReport]:
    """`quantize_within` for a source and its data, with progress bars."""
    from hybridkit.budget import quantize_within
    from hybridkit.tasks.samples import draw

    network = found.network
    task = task_of(found, network, data)
    samples = draw(task, data.samples)
    with progress() as display:
        bars = {-1: display.add_task("Trying layers", total=None)}

        def tried(done: int, units: int) -> None:
            display.update(bars[-1], total=units, completed=done)

        def seen(number: int, doing: str, done: int, of: int) -> None:
            if number not in bars:
                bars[number] = display.add_task("")
            display.update(bars[number], description=f"{doing}, try {number + 1}", total=of, completed=done)

        return quantize_within(
            network,
            task,
            samples,
            config,
            budget,
            output,
            tuning=tuning,
            storage=storage,
            tried=tried,
            seen=seen,
        )


def frontier_table(report: BudgetReport) -> Table:
    """Sizes, what is expected of them, what was measured, and what they are made of."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Bytes", "Expected", f"Lost, {report.metric}"):
        table.add_column(heading, justify="right")
    table.add_column("Weights")
    rows = [(p.bytes, p.expected, "", _made_of(p.shares)) for p in report.frontier]
    for number, each in enumerate(report.tried):
        mark = "taken" if number == report.taken else "tried"
        rows.append((each.bytes, each.expected, f"{each.lost:.5f}", mark))
    for size, expected, lost, what in sorted(rows, key=lambda row: row[0]):
        table.add_row(f"{size:,}", f"{expected:.5f}", lost, what)
    return table


def _made_of(shares: Mapping[str, float]) -> str:
    most = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{100 * share:.0f} % {label}" for label, share in most if share >= 0.005)


def check_drawing(path: Path) -> None:
    """Raises UsageError where there will be no picture: before the work, not after it."""
    if find_spec("matplotlib") is None:
        raise UsageError("--frontier needs matplotlib: pip install 'hybridkit[plots]'")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--frontier {path}: there is no folder {path.absolute().parent}")


def draw_frontier(report: BudgetReport, path: Path) -> None:
    """The frontier and what was tried, as a PNG. Raises FileError if it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from hybridkit.packing.atomic import atomic_file

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    expected = [max(p.expected, 1e-9) for p in report.frontier]
    axes.plot([p.bytes / 1e6 for p in report.frontier], expected, "o-", color="#555555", label="expected")
    lost = [max(each.lost, 1e-9) for each in report.tried]
    axes.plot([t.bytes / 1e6 for t in report.tried], lost, "x", color="#0072B2", label="measured")
    taken = report.tried[report.taken]
    axes.plot([taken.bytes / 1e6], [max(taken.lost, 1e-9)], "o", color="#D55E00", label="taken")
    if report.budget.within is not None:
        axes.axhline(report.budget.within, color="#D55E00", linewidth=0.8, linestyle="--")
    axes.set(xlabel="MB of the file", ylabel=f"lost of {report.metric}", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def refuse_idle(given: Sequence[str]) -> None:
    """Options that say what the budget decides. Raises UsageError for the first."""
    for name in given:
        raise UsageError(f"--{name.replace('_', '-')} is what a budget decides; drop one of the two")
