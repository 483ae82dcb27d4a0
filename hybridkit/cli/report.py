"""`hybridkit report`: what became of a run, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybridkit.cli._shared import JsonOption, emit_json


def command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder or name, or a folder of runs: the newest.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the page goes (report.html in the run folder).")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where run folders are (HYBRIDKIT_RUNS, else runs).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a run as one HTML page: curves, layers, samples of text, what happened, configuration.

    The page holds everything that it needs and loads nothing. It works for runs that go on, were interrupted
    or come from older versions, and says what they lack. With --json the data are printed, and a page is
    written where --out asks for it.
    """
    from hybridkit.report.data import collect
    from hybridkit.training.runs import find_run

    found, _ = find_run(run, run_dir)
    report = collect(found)
    path = out or (None if json else found.path / "report.html")
    if path is not None:
        from hybridkit.packing.atomic import atomic_file
        from hybridkit.report.page import page

        with atomic_file(path) as file:
            file.write(page(report).encode())
    if json:
        from dataclasses import asdict

        emit_json("report", {**asdict(report), "page": path})
    else:
        print(f"Report: {path}")
