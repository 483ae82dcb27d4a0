"""The findings as tables, as one JSON document and as one HTML page with its pictures inside."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hybridkit.bench import format
from hybridkit.bench.convergence.findings import Findings, Ranking, Standing
from hybridkit.bench.convergence.methods import BASELINE, OURS, OURS_AND_ABLATIONS
from hybridkit.bench.convergence.numbers import Number, numbers
from hybridkit.bench.convergence.plan import Plan
from hybridkit.bench.convergence.summary import curve
from hybridkit.bench.convergence.trials import Record, Trial
from hybridkit.bench.machine import Machine
from hybridkit.bench.tables import TextTable
from hybridkit.plain import plain

SCHEMA: Final = "hybridkit/convergence/2"
MINE, OTHERS, ABLATED, CUSTOM = "#D55E00", "#0072B2", "#E69F00", "#009E73"


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a reader needs."""

    machine: Machine
    plan: Plan
    settings: list[Findings]
    records: Mapping[Trial, Record]
    extras: list[Ranking] = field(default_factory=list)

    @property
    def everything(self) -> list[Ranking]:
        """All settings, those of `--full` last."""
        return [*self.settings, *self.extras]

    @property
    def numbers(self) -> list[Number]:
        """The numbers that must be reached."""
        return list(numbers(self.settings))


def tables(report: Report) -> Iterator[TextTable]:
    """The numbers, then one table for each setting."""
    yield number_table(report)
    if any(found.overhead for found in report.settings):
        yield overhead_table(report.settings)
    for found in report.everything:
        yield setting_table(found)


def number_table(report: Report) -> TextTable:
    """Every number beside its limit."""
    rows = []
    for n in report.numbers:
        limit = "reported" if n.limit is None else f"{'>=' if n.least else '<='} {n.limit:g}"
        verdict = {None: "", True: "met", False: "missed"}[n.met]
        rows.append((n.claim, str(n.setting), format.interval(n.measured, 3), limit, verdict))
    seeds = len(report.plan.seeds)
    notes = [
        f"Medians over {seeds} seeds, compared in pairs of equal seed, with 95 % bootstrap intervals. "
        "A limit is met by the median; that against the best rival by the whole interval.",
        "Steps: the shortest run, with a schedule of its own, that ends at the other's final validation "
        "loss, as a share of the other's steps. Seconds include clustering, controller and constraint.",
        f"{OURS} plans the size of its steps itself (relative_step of its controller), so that --lr does "
        "nothing: that a wrong one leaves the loss as it is shows no robustness.",
        f"Rivals tuned: {rival_counts(report.settings)}.",
    ]
    return TextTable("The numbers", ("number", "setting", "measured", "must be", "verdict"), rows, notes)


def rival_counts(found: Sequence[Findings]) -> str:
    """How many rivals were tuned in each setting."""
    counts = {str(f.setting): sum(bool(s.spread) for s in f.standings) for f in found}
    return ", ".join(f"{count} on {setting}" for setting, count in counts.items())


def overhead_table(settings: Sequence[Findings]) -> TextTable:
    """Milliseconds of a step, and what is added to it."""
    rows = [
        (
            str(found.setting),
            f"{o.base_step_ms:.2f}",
            f"{o.hybrid_step_ms:.2f}",
            format.share(o.overhead),
            f"{o.adamw_step_ms:.2f}",
            f"{o.setup_seconds:.2f}",
        )
        for found in settings
        if (o := found.overhead)
    ]
    headings = (
        "setting",
        "base optimizer, ms",
        f"{OURS}, ms",
        "added",
        "AdamW, ms",
        "before the first step, s",
    )
    notes = [
        f"A step's wall-clock, timed with nothing else running: {OURS}, its base optimizer alone, and AdamW "
        "take turns. Added: by controller, sampler and constraint."
    ]
    return TextTable("Time of a step", headings, rows, notes)


def setting_table(found: Ranking) -> TextTable:
    """Every method, the best first; columns that nobody fills are left out."""
    columns: dict[str, Callable[[Standing], str]] = {
        "method": lambda s: s.method,
        "lr": lambda s: "-" if s.lr is None else f"{s.lr:g}",
        "validation loss": lambda s: format.interval(s.loss),
        f"over {OURS}'s": lambda s: format.interval(s.ratio, 3),
        "test metric": lambda s: format.interval(s.metric, 4),
        "seconds": lambda s: f"{s.seconds:.1f}",
    }
    if isinstance(found, Findings):
        steps = found.steps
        columns[f"steps of {OURS} to it"] = lambda s: (
            format.interval(steps[s.method], 2) if s.method in steps else "-"
        )
    if any(s.error for s in found.standings):
        columns["squared relative error"] = lambda s: format.interval(s.error, 3) if s.error else "-"
    if any(s.spread for s in found.standings):
        columns["median loss by learning rate (2 seeds)"] = lambda s: ", ".join(
            f"{lr:g}: {_loss(loss)}" for lr, loss in s.spread.items()
        )
    ranked = sorted(found.standings, key=lambda s: (not math.isfinite(s.loss.median), s.loss.median))
    rows = [tuple(text(s) for text in columns.values()) for s in ranked]
    return TextTable(
        f"{found.setting}: {found.setting.steps} steps of {found.setting.batch_size}", tuple(columns), rows
    )


def _loss(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "diverged"


def to_json(report: Report) -> dict[str, Any]:
    """Plain values; what is not finite is null."""
    return {
        "schema": SCHEMA,
        "machine": plain(report.machine),
        "seeds": list(report.plan.seeds),
        "numbers": [plain(n) | {"met": n.met} for n in report.numbers],
        "settings": plain(report.settings),
        "extras": plain(report.extras),
    }


def save(report: Report, folder: Path) -> list[Path]:
    """convergence.json and convergence.html in `folder`, each whole or not at all."""
    from hybridkit.packing.atomic import atomic_file

    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "convergence.json": json.dumps(to_json(report), indent=1, allow_nan=False) + "\n",
        "convergence.html": to_html(report),
    }
    for name, text in texts.items():
        with atomic_file(folder / name) as file:
            file.write(text.encode())
    return [folder / name for name in texts]


# --- the page


STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem;
  color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; vertical-align: top }
th { background: #f5f5f5 } td.met { color: #006d3c }
td.missed { color: #b3261e; font-weight: 600 }
figure { margin: 1rem 0 } img { max-width: 100% } p.note { color: #555; font-size: 13px; max-width: 60rem }
"""


def to_html(report: Report) -> str:
    """One page; pictures need matplotlib and are left out without it."""
    from hybridkit.bench.plots import available

    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    head = (
        f"{machine.processor}, {machine.cores} cores, {'/'.join(machine.instruction_set)}, Python "
        f"{machine.python}, {versions}, commit {machine.git_commit or 'unknown'}; one thread a run"
    )
    parts = [f"<h1>Convergence</h1><p class=note>{html.escape(head)}</p>", _table(number_table(report))]
    if any(found.overhead for found in report.settings):
        parts.append(_table(overhead_table(report.settings)))
    for found in report.everything:
        parts.append(f"<h2>{html.escape(str(found.setting))}</h2>")
        if available():
            parts.append(_picture(report, found))
        parts.append(_table(setting_table(found)))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Convergence</title><style>{STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _table(table: TextTable) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in table.columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{f' class={c}' if c in ('met', 'missed') else ''}>{html.escape(c)}</td>" for c in row)
        + "</tr>"
        for row in table.rows
    )
    notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in table.notes)
    return f"<h3>{html.escape(table.title)}</h3><table><tr>{head}</tr>{body}</table>{notes}"


def _picture(report: Report, found: Ranking) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widths = (1.1, 1, 0.9) if isinstance(found, Findings) else (1.1, 1)
    figure = Figure(figsize=(5 * len(widths), 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(widths), width_ratios=widths)
    _draw_curves(panels[0], report, found)
    _draw_bars(panels[1], found)
    if isinstance(found, Findings):
        _draw_mistakes(panels[2], figure, report, found)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img alt="{html.escape(str(found.setting))}" src="data:image/png;base64,{data}"></figure>'
    )


def _draw_curves(axes: Any, report: Report, found: Ranking) -> None:
    """Validation loss over steps with bands: ours, the baseline, those brought along, three best rivals."""
    from hybridkit.bench.plots import logarithmic

    ranked = sorted(found.standings, key=lambda s: s.loss.median)
    others = [s for s in ranked if s.method not in (*OURS_AND_ABLATIONS, BASELINE)]
    rivals = [*(s for s in others if s.custom), *[s for s in others if not s.custom][:3]]
    baseline = next(s for s in ranked if s.method == BASELINE)
    ours = next(s for s in ranked if s.method == OURS)
    colours = itertools.cycle(("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"))
    for standing in (ours, baseline, *rivals):
        colour = {OURS: MINE, BASELINE: "#555555"}.get(standing.method) or next(colours)
        lr = standing.lr if standing in rivals else None
        trials = [report.plan.trial(found.setting, standing.method, s, lr) for s in report.plan.seeds]
        runs = [report.records[trial] for trial in trials]
        band = curve([r.curve for r in runs])
        steps = band.steps[1:]
        axes.plot(steps, band.median[1:], color=colour, label=standing.method)
        axes.fill_between(steps, band.low[1:], band.high[1:], color=colour, alpha=0.15)
    axes.set(xlabel="step", ylabel="validation loss")
    logarithmic(axes)
    axes.legend(frameon=False, fontsize="small")
    axes.grid(alpha=0.3, which="both")


def _draw_bars(axes: Any, found: Ranking) -> None:
    """Final loss of everybody over ours, the best on top; who diverged is named without a bar."""
    shown = sorted(found.standings, key=lambda s: -s.ratio.median)
    for i, s in enumerate(shown):
        if not math.isfinite(s.ratio.high):
            axes.annotate("diverged", (0.02, i), xycoords=("axes fraction", "data"), va="center", fontsize=8)
            continue
        rival = CUSTOM if s.custom else OTHERS
        colour = MINE if s.method == OURS else ABLATED if s.method in OURS_AND_ABLATIONS else rival
        axes.plot([s.ratio.low, s.ratio.high], [i, i], color=colour, linewidth=2)
        axes.plot(s.ratio.median, i, "o", color=colour)
    axes.axvline(1, color="#999999", linewidth=1)
    axes.set_yticks(range(len(shown)), [s.method for s in shown])
    axes.set_ylim(-0.5, len(shown) - 0.5)
    axes.set_xlabel(f"final loss over {OURS}'s")
    axes.grid(alpha=0.3, axis="x")


def _draw_mistakes(axes: Any, figure: Any, report: Report, found: Findings) -> None:
    """Heat map of the final loss over learning rate and first radius, relative to the default."""
    from hybridkit.bench.convergence.plan import heat_trial

    factors = sorted({*report.plan.misset, 1.0})
    seed = report.plan.seeds[0]
    middle = report.records[heat_trial(found.setting, seed, 1, 1)].loss
    losses = [
        [report.records[heat_trial(found.setting, seed, lr, radius)].loss / middle - 1 for lr in factors]
        for radius in factors
    ]
    shown = axes.imshow([[100 * v for v in row] for row in losses], cmap="coolwarm", vmin=-5, vmax=5)
    for y, row in enumerate(losses):
        for x, value in enumerate(row):
            text = f"{100 * value:+.1f}" if math.isfinite(value) else "-"
            colour = "white" if abs(value) > 0.03 else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
    names = [f"x {f:g}" for f in factors]
    axes.set_xticks(range(len(factors)), names)
    axes.set_yticks(range(len(factors)), names)
    axes.set(xlabel="learning rate", ylabel="first radius", title="loss against the default, % (one seed)")
    figure.colorbar(shown, ax=axes, shrink=0.8)
