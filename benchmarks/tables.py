"""Writes the committed results into the documents, so that no number is typed by hand.

python benchmarks/tables.py            fill in the tables
python benchmarks/tables.py --check    exit 1 and name the documents whose tables are stale; a test runs this

A document says where a table goes, and which one:

    <!-- bench:begin claims -->
    <!-- bench:end -->
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridkit.bench import tables
from hybridkit.bench.convergence.findings import Findings, Ranking
from hybridkit.bench.convergence.report import overhead_table, rival_counts, setting_table
from hybridkit.bench.format import interval
from hybridkit.bench.results import from_json
from hybridkit.bench.statistics import Interval
from hybridkit.bench.tables import TextTable

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "benchmarks" / "kernels")]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/results.md", "docs/native.md", "benchmarks/README.md")  # those that exist
SUMMARISED = ("digits-30", "convergence")
UNMOVED = (
    "The method plans the size of its steps itself (`relative_step` of its controller), so that `--lr` does "
    "nothing: that a wrong one leaves the loss as it is shows no robustness."
)
_BLOCK = re.compile(r"(<!-- bench:begin ([\w-]+) -->\n).*?(<!-- bench:end -->)", re.DOTALL)


def blocks() -> dict[str, str]:
    """Every table that a document may ask for, as Markdown, by name."""
    bench = from_json(json.loads((RESULTS / "digits.json").read_text("utf-8")))
    assert bench.convergence
    assert bench.quantization
    assert bench.inference
    return {
        "machine": tables.machine_line(bench) + ".\n",
        "claims": markdown(tables.claim_table(bench)),
        "convergence": markdown(tables.convergence_table(bench.convergence)),
        "errors": markdown(tables.error_table(bench.quantization)),
        "sizes": markdown(tables.size_table(bench.quantization)),
        "files": markdown(tables.file_table(bench.inference)),
        "latency": markdown(tables.latency_table(bench.inference)),
        "help-latency": help_latency(),
        "gpu-steps": markdown(gpu_steps()),
        "arena": comparison("convergence"),
        "arena-summary": summary(),
        "arena-cells": "\n".join(settings("convergence")),
        "digits-30": comparison("digits-30"),
        "digits-30-cells": "\n".join(settings("digits-30")),
        "austen": comparison("austen"),
        "austen-cells": "\n".join(settings("austen")),
        "satellite": comparison("satellite"),
        "satellite-cells": "\n".join(settings("satellite")),
        "letters": comparison("letters"),
        "letters-cells": "\n".join(settings("letters")),
        **{name: markdown(table) for name, table in by_folder().items()},
        **kernel_blocks(),
    }


def comparison(file: str) -> str:
    """The numbers of a convergence bench, and where they were measured."""
    document = json.loads((RESULTS / f"{file}.json").read_text("utf-8"))
    rows = []
    for number in document["numbers"]:
        ends = {k: math.inf if v is None else v for k, v in number["measured"].items()}
        verdict = {None: "", True: "met", False: "missed"}[number["met"]]
        measured = interval(Interval(**ends), 3)
        rows.append((number["claim"], _setting(number), measured, _limit(number), verdict))
    machine = document["machine"]
    notes = [
        f"Medians over {len(document['seeds'])} seeds with paired 95 % bootstrap intervals. "
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['versions']['torch']}, "
        f"commit {machine['git_commit'][:12]}.",
        f"{UNMOVED} Rivals tuned: {rival_counts(_core(document))}.",
    ]
    columns = ("number", "setting", "measured", "must be", "verdict")
    return markdown(TextTable("Convergence: the numbers", columns, rows, notes))


def summary() -> str:
    """The same numbers, a line for each and a column for each setting: medians, on digits of thirty seeds."""
    documents = [json.loads((RESULTS / f"{file}.json").read_text("utf-8")) for file in SUMMARISED]
    numbers = [
        number
        for document in documents
        for number in document["numbers"]
        if document is documents[0] or number["setting"]["task"] != "digits"
    ]
    columns = list(dict.fromkeys(map(_setting, numbers)))
    rows = []
    for claim in dict.fromkeys(number["claim"] for number in numbers):
        own = {_setting(number): number for number in numbers if number["claim"] == claim}
        limits = " or ".join(dict.fromkeys(map(_limit, own.values())))
        rows.append((claim, limits, *(_median(own[each]) if each in own else "" for each in columns)))
    notes = [
        "Medians over the seeds: thirty on digits, five elsewhere. * misses what must be; against the best "
        "rival the upper 95 % bound counts.",
        f"{UNMOVED} Rivals tuned: {rival_counts(_core(documents[1]))}.",
    ]
    return markdown(
        TextTable(
            "Convergence: one default against tuned rivals", ("number", "must be", *columns), rows, notes
        )
    )


def _core(document: dict[str, Any]) -> list[Findings]:
    from pydantic import TypeAdapter

    return TypeAdapter(list[Findings]).validate_python(document["settings"])


def _setting(number: dict[str, Any]) -> str:
    return f"{number['setting']['task'].rpartition(':')[2]}, {number['setting']['precision']}"


def _limit(number: dict[str, Any]) -> str:
    return (
        "reported" if number["limit"] is None else f"{'>=' if number['least'] else '<='} {number['limit']:g}"
    )


def _median(number: dict[str, Any]) -> str:
    median = number["measured"]["median"]
    return ("never" if median is None else f"{median:.2f}") + ("*" if number["met"] is False else "")


def settings(file: str) -> Iterator[str]:
    """What a step costs, and every method of every setting."""
    from pydantic import TypeAdapter

    document = json.loads((RESULTS / f"{file}.json").read_text("utf-8"))
    core = _core(document)
    extras = TypeAdapter(list[Ranking]).validate_python(document["extras"])
    if any(found.overhead for found in core):
        yield markdown(overhead_table(core))
    for found in (*core, *extras):
        yield markdown(setting_table(found))


def by_folder() -> dict[str, TextTable]:
    """The tables that the folders beside this file make of results of their own."""
    from benchmarks.development.results import tables as developed
    from benchmarks.distillation.tables import tables as trained
    from benchmarks.generation.tables import tables as generated
    from benchmarks.quality.tables import tables as calibrated

    return developed() | trained() | calibrated() | generated()


def kernel_blocks() -> dict[str, str]:
    """The kernels' numbers, the first shape's table, and those of all shapes, for each instruction set."""
    import report
    import results

    runs = [results.read(path) for path in sorted(RESULTS.glob("kernels-*.json"), reverse=True)]
    numbers, first, shapes, machines = [], [], [], []
    for run in runs:
        document = run.document
        machine = document["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        machines.append(
            f"{run.isa}: {machine['processor']}, {machine['cores']} cores, {versions}, "
            f"ggml {document['ggml'] or 'not built'}; commit {machine['git_commit'][:12]}; "
            f"{document['processes']} processes, {document['wall_seconds'] / 60:.0f} minutes.\n"
        )
        made = list(report.shape_tables(run))
        numbers.append(markdown(report.verdict_table(run)))
        first.append(markdown(made[0]))
        shapes += map(markdown, made)
    import groups

    promised, times = [], []
    for path in sorted(RESULTS.glob("groups-*.json"), reverse=True):
        first_table, *others = groups.tables(json.loads(path.read_text("utf-8")))
        promised.append(markdown(first_table))
        times += map(markdown, others)
    import instructions

    counts = json.loads((RESULTS / "instructions.json").read_text("utf-8"))
    found = {
        "instructions": [markdown(instructions.table(counts))],
        "groups": promised,
        "groups-shapes": times,
        "kernels": numbers,
        "kernels-first": first,
        "kernels-shapes": shapes,
        "kernels-machine": machines,
    }
    return {name: "\n".join(parts) or "No run is committed yet.\n" for name, parts in found.items()}


def markdown(table: TextTable) -> str:
    """A table with its title above and its notes below."""
    lines = [f"**{table.title}**", "", *_rows(table), *(f"\n{note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _rows(table: TextTable) -> Iterator[str]:
    for cells in (table.columns, ("---",) * len(table.columns), *table.rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def help_latency() -> str:
    """The wall time of --help, in one sentence."""
    found = json.loads((RESULTS / "help_latency.json").read_text("utf-8"))
    seconds = {name: f"{interval['median']:.3f} s" for name, interval in found["seconds"].items()}
    rivals = ", ".join(f"`{name}` {text}" for name, text in seconds.items() if name != "hybridkit --help")
    verdict = "met" if found["met"] else "missed"
    return (
        f"`hybridkit --help` {seconds['hybridkit --help']} (target {found['target_seconds']} s: {verdict}); "
        f"{rivals}. Medians of {found['rounds']} rounds on {found['machine']['processor']}.\n"
    )


def gpu_steps() -> TextTable:
    """A step on a GPU, each way."""
    found = json.loads((RESULTS / "gpu-steps.json").read_text("utf-8"))
    ways = ("adamw", "muon", "base", "hybrid")
    rows = [
        (
            f"{row['model']}, {row['precision']}",
            str(row["batch_size"]),
            *(f"{row[f'{way}_ms']:.1f}" for way in ways),
            *(
                interval(Interval(middle, low, high), 3)
                for low, middle, high in (row["overhead"], row["over_muon"])
            ),
        )
        for row in found["rows"]
    ]
    columns = ("network", "batch", *(f"{way}, ms" for way in ways), "hybrid / base", "hybrid / muon")
    notes = [
        f"Medians of {found['rounds']} rounds with 95 % bootstrap intervals. {found['device']}, "
        f"torch {found['torch']}."
    ]
    return TextTable("Training steps of a byte-level transformer on a GPU", columns, rows, notes)


def filled(text: str, found: dict[str, str]) -> str:
    """`text` with every table between markers replaced. Raises KeyError for a table that does not exist."""
    return _BLOCK.sub(lambda match: match[1] + "\n" + found[match[2]] + "\n" + match[3], text)


def main(arguments: list[str]) -> int:
    """Fill in or check; the exit code."""
    found = blocks()
    stale = []
    for name in filter(lambda name: (ROOT / name).is_file(), DOCUMENTS):
        text = (ROOT / name).read_text("utf-8")
        if filled(text, found) != text:
            stale.append(name)
            if arguments != ["--check"]:
                (ROOT / name).write_text(filled(text, found), "utf-8")
    if arguments == ["--check"] and stale:
        print(f"stale: {', '.join(stale)}; run python benchmarks/tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
