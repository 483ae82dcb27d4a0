"""The page: one HTML file with its style and script inside, which loads nothing and sends nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, Final

from hybridkit import __version__
from hybridkit.report.charts import chart_figure, shown_value, spark
from hybridkit.report.data import Layer, Report
from hybridkit.training.config import TrainConfig
from hybridkit.training.history import Note

NOTHING_FROM_OUTSIDE: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
MOST_NOTES = 200
MOST_SAMPLES = 12


def page(report: Report) -> str:
    """The whole page. Everything that a file said is escaped."""
    sections = (
        _head(report),
        _section("Curves", f'<div class="charts">{"".join(map(chart_figure, report.charts))}</div>')
        if report.charts
        else "",
        _layers(report),
        _samples(report),
        _section("What happened", _history(report.history)) if report.history else "",
        _section("Not logged", _bullets(report.missing)) if report.missing else "",
        _settings(report),
    )
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{NOTHING_FROM_OUTSIDE}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(report.run)}</title>
<style>
{style}</style>
</head>
<body>
{"".join(sections)}
<script>
{script}</script>
</body>
</html>
"""


def _head(report: Report) -> str:
    task, model = (report.config.get(name) for name in ("task", "model"))
    about = [f"task {task}", *([f"model {model}"] if model else ()), report.state, f"begun {report.created}"]
    tiles = {"steps": f"{report.steps:,}", "time in steps": _duration(report.seconds)}
    tiles |= {f"{unit} per second": f"{rate:,.0f}" for unit, rate in report.throughput.items()}
    tiles |= {_spaced(n): "-" if v is None else shown_value(v) for n, v in report.results.items()}
    cells = "".join(f"<div><dt>{_text(n)}</dt><dd>{_text(v)}</dd></div>" for n, v in tiles.items())
    return (
        f"<h1>{_text(report.run)}</h1><p class='soft'>{_text(', '.join(about))}; "
        f"hybridkit {_text(__version__)}</p><dl class='tiles'>{cells}</dl>"
    )


def _layers(report: Report) -> str:
    if not report.layers:
        return ""
    worst = max((layer.error[-1] or 0.0 for layer in report.layers), default=0.0) or 1.0
    most = max((layer.changed[-1] or 0.0 for layer in report.layers), default=0.0) or 1.0
    rows = "".join(_layer_row(layer, worst, most) for layer in report.layers)
    heads = ("Layer", "Zeros", "over steps", "Error", "over steps", "Changed by the last step")
    steps = f"{report.layer_steps[0]:,} to {report.layer_steps[-1]:,}"
    return _section(
        f"Layers after step {report.layer_steps[-1]:,}",
        "<p class='soft'>Share of weights with the code zero; squared relative error of the packed weights "
        f"against the latent ones. Small lines: the evaluations of steps {steps}, each line in its "
        f"own scale.</p><div class='scroll'><table class='layers'>{_table_head(heads)}{rows}</table></div>",
    )


def _layer_row(layer: Layer, worst: float, most: float) -> str:
    zeros, error, changed = (values[-1] for values in (layer.zeros, layer.error, layer.changed))
    cells = (
        _text(layer.name or "(the model)"),
        _bar(zeros, 1.0, "c2", percent=True),
        spark(layer.zeros, "c2"),
        _bar(error, worst, "c1"),
        spark(layer.error, "c1"),
        _bar(changed, most, "c0", percent=True),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _bar(value: float | None, most: float, colour: str, percent: bool = False) -> str:
    if value is None:
        return "-"
    width = min(100.0, 100 * value / most)
    label = shown_value(value, percent)
    return f'<span class="bar {colour}"><i style="width:{width:.1f}%"></i></span>{label}'


def _samples(report: Report) -> str:
    """The last sample, and the earlier ones, evenly thinned, to unfold."""
    if not report.samples:
        return ""
    *earlier, last = report.samples
    every = -(-len(earlier) // MOST_SAMPLES) or 1
    shown = earlier[::-1][::every]
    before = "".join(f"<h3>Step {s.step:,}</h3><pre>{_text(s.text)}</pre>" for s in shown)
    folded = f"<details><summary>Earlier samples</summary>{before}</details>" if before else ""
    return _section("Samples of text", f"<h3>Step {last.step:,}</h3><pre>{_text(last.text)}</pre>{folded}")


def _history(notes: Sequence[Note]) -> str:
    rows = "".join(
        f'<tr class="{note.what}"><td>{_text(note.time)}</td><td>{note.step:,}</td><td>{note.what}</td>'
        f"<td>{_text(note.text)}</td></tr>"
        for note in notes[-MOST_NOTES:]
    )
    left_out = len(notes) - MOST_NOTES
    more = f"<p class='soft'>{left_out:,} earlier notes are left out.</p>" if left_out > 0 else ""
    heads = ("Time", "Step", "What", "")
    return f"{more}<div class='scroll'><table>{_table_head(heads)}{rows}</table></div>"


def _settings(report: Report) -> str:
    """Configuration (what differs from the defaults first, and bold), environment and data."""
    usual = dataclasses.asdict(TrainConfig())
    changed = {n: v for n, v in report.config.items() if n not in usual or usual[n] != v}
    rest = {n: v for n, v in report.config.items() if n not in changed}
    tables = (
        ("Configuration", _rows(changed, "changed") + _rows(rest)),
        ("Environment", _rows(report.environment)),
        ("Data", _rows(report.data)),
    )
    parts = "".join(f"<div><h3>{name}</h3><table>{rows}</table></div>" for name, rows in tables if rows)
    return _section("Configuration and environment", f'<div class="tables">{parts}</div>') if parts else ""


def _rows(table: Mapping[str, Any], kind: str = "") -> str:
    return "".join(
        f'<tr class="{kind}"><th>{_text(_spaced(name))}</th><td>{_text(_plain(value))}</td></tr>'
        for name, value in table.items()
    )


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>"


def _table_head(names: Iterable[str]) -> str:
    return "<thead><tr>" + "".join(f"<th>{_text(name)}</th>" for name in names) + "</tr></thead>"


def _bullets(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences) + "</ul>"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _spaced(name: str) -> str:
    return str(name).replace("_", " ")


def _text(value: str) -> str:
    """`value`, which may come out of a file, as HTML text: escaped, control characters replaced."""
    seen = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return escape(seen, quote=True)
