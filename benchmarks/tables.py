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
sys.path.append(str(ROOT / "benchmarks" / "kernels"))
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/results.md", "benchmarks/README.md")  # those that exist
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
        "encoder": markdown(encoder()),
        "encoder-latency": markdown(encoder_latency()),
        "classifier-start": markdown(classifier_start()),
        "training-step": markdown(training_step()),
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
    found = {
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


def encoder() -> TextTable:
    """A sentence encoder made ternary: how close, how good, how large."""
    found = json.loads((RESULTS / "minilm.json").read_text("utf-8"))
    cosine, ranks, run = found["cosine"], found["spearman"], found["training"]
    minutes = found["processor_seconds"] / 2 / 60
    whole = {suffix: sizes["everything"] / 1e6 for suffix, sizes in found["bytes"].items()}
    lost = interval(Interval(ranks["lost"], *ranks["interval"]), 2)
    mean = interval(Interval(cosine["mean"], *cosine["interval"]), 4)
    rows = [
        ("mean cosine to the original, sentences of novels", ">= 0.93", mean, _met(cosine["mean"] >= 0.93)),
        ("its 10th and 1st percentile", "reported", f"{cosine['p10']:.3f}, {cosine['p1']:.3f}", ""),
        ("Spearman on the STS benchmark, original", "reported", f"{ranks['original']:.2f}", ""),
        ("the same, ternary", "reported", f"{ranks['ternary']:.2f}", ""),
        ("points lost", "<= 2", lost, _met(ranks["lost"] <= 2)),
        ("packed file, tokenizer included, MB", "<= 15", *_megabytes(whole[".safetensors"])),
        ("ONNX file, tokenizer included, MB", "<= 15", *_megabytes(whole[".onnx"])),
        ("minutes of training, two cores' time / 2", "<= 60", f"{minutes:.1f}", _met(minutes <= 60)),
    ]
    notes = [
        f"{found['sentences']:,} sentences, {ranks['pairs']:,} pairs; 95 % bootstrap intervals over them, one"
        f" run. {run['steps']:,} steps, {run['tokens'] / 1e6:.1f} million tokens of other text, "
        f"{found['machine']['processor']}, {found['machine']['cores']} cores. The original is "
        f"{found['original_bytes'] / 1e6:.1f} MB. "
        "Cosine on other sentences of the novels by step: "
        + ", ".join(f"{step:,}: {value:.3f}" for step, value in run["curve"])
        + "."
    ]
    return TextTable("all-MiniLM-L6-v2, ternary", ("number", "must be", "measured", "verdict"), rows, notes)


def encoder_latency() -> TextTable:
    """What a run of its file takes, beside its peers."""
    found = json.loads((RESULTS / "minilm.json").read_text("utf-8"))
    rows = [
        (
            f"{row['batch']} x 32 tokens, {row['threads']} thread{'s' if row['threads'] > 1 else ''}",
            row["name"],
            f"{row['p50_ms']:.2f}",
            f"{row['p90_ms']:.2f}",
            f"{row['times_ours']:.2f}",
        )
        for row in found["latency"]
    ]
    columns = ("texts", "file", "median, ms", "90th percentile, ms", "times ours")
    return TextTable("The encoder inside ONNX Runtime", columns, rows, ["Files take turns; inputs differ."])


def classifier_start() -> TextTable:
    """A ternary classifier from a pretrained start and from random weights."""
    found = json.loads((RESULTS / "classifier-start.json").read_text("utf-8"))
    rows = [
        (
            start,
            f"{found['rates'][start]:g}",
            ", ".join(f"{100 * value:.1f}" for value in values),
            f"{100 * sorted(values)[len(values) // 2]:.1f}",
        )
        for start, values in found["accuracy"].items()
    ]
    gained = Interval(*(100 * found["gained"][name] for name in ("median", "low", "high")))
    notes = [
        f"{found['steps']} steps each. Gained by the pretrained start, paired by seed: {interval(gained, 1)} "
        "points (bootstrap interval of the median)."
    ]
    columns = ("start", "learning rate", "test accuracy by seed, %", "median")
    return TextTable("A ternary classifier of 26 categories", columns, rows, notes)


def training_step() -> TextTable:
    """A step of quantisation-aware training beside a plain one."""
    found = json.loads((RESULTS / "training-step.json").read_text("utf-8"))
    rows = [
        (
            row["network"],
            row["precision"],
            f"{row['ours_ms']:.0f}",
            f"{row['plain_ms']:.0f}",
            interval(Interval(**row["ratio"]), 2),
            _met(row["ratio"]["median"] <= 1.3),
        )
        for row in found["rows"]
    ]
    notes = [f"{found['machine']['processor']}, {found['machine']['cores']} cores."]
    columns = ("network", "precision", "ternary, ms", "plain, ms", "ratio", "<= 1.3")
    return TextTable("A training step, ternary and plain", columns, rows, notes)


def _met(holds: bool) -> str:
    return "met" if holds else "missed"


def _megabytes(size: float) -> tuple[str, str]:
    return f"{size:.2f}", _met(size <= 15)


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
