"""`hybridkit plugins`: every strategy and where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hybridkit.cli._shared import JsonOption, console, emit_json
from hybridkit.errors import UsageError
from hybridkit.hookspecs import KINDS
from hybridkit.options import nearest

if TYPE_CHECKING:
    from hybridkit.registry import Entry, Failure


def command(
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help=f"Only strategies of one kind: {', '.join(KINDS)}.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List every strategy with its kind, name, summary and origin, and the plugins that failed to load."""
    from hybridkit.registry import registry

    wanted = kind.replace("-", "_") if kind else None
    if wanted and wanted not in KINDS:
        raise UsageError(f"--kind {kind}: no such kind; {nearest(wanted, KINDS)}")
    found = registry()
    entries = sorted(
        (e for e in found.entries if wanted in (None, e.strategy.kind)),
        key=lambda e: (KINDS.index(e.strategy.kind), e.strategy.name, e.distribution),
    )
    if json:
        emit_json("plugins", {"strategies": [_row(e) for e in entries], "failures": found.failures})
    else:
        _print_tables(entries, found.failures)


def _row(entry: Entry) -> dict[str, str]:
    s = entry.strategy
    return {
        "kind": s.kind,
        "name": s.name,
        "summary": s.summary,
        "target": s.target,
        "distribution": entry.distribution,
        "version": entry.version,
    }


def _print_tables(entries: list[Entry], failures: list[Failure]) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = console()
    table = Table("Kind", "Name", "Summary", "From", box=None, pad_edge=False, header_style="bold")
    for e in entries:
        s = e.strategy
        table.add_row(s.kind, escape(s.name), escape(s.summary), escape(f"{e.distribution} {e.version}"))
    out.print(table)
    if failures:
        broken = Table("Failed to load", "From", "Reason", box=None, pad_edge=False, header_style="bold red")
        for f in failures:
            broken.add_row(escape(f.entry_point), escape(f"{f.distribution} {f.version}"), escape(f.reason))
        out.print()
        out.print(broken)
