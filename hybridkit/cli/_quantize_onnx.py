"""`hybridkit quantize model.onnx`: ONNX file to ONNX file. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridkit.cli._shared import console, emit_json, progress
from hybridkit.errors import UsageError

if TYPE_CHECKING:
    from hybridkit.exporting.onnx_quantize import LayerReport, OnnxReport
    from hybridkit.exporting.onnx_quantize.comparison import Feed
    from hybridkit.quant.budgets import BudgetReport


def run(
    source: Path,
    output: Path | None,
    *,
    idle: Mapping[str, Any],
    json: bool,
    inputs: Path | None = None,
    within: str | None = None,
    max_size: str | None = None,
    frontier: Path | None = None,
    **how: Any,
) -> None:
    """Quantise, verify, print. `idle`: flags that are for networks; `how`: what `quantize_onnx` takes."""
    for name in idle:
        flag = name.replace("_", "-")
        raise UsageError(f"--{flag} is for networks, and {source.name} is an ONNX file; drop it")

    from hybridkit.exporting.onnx_quantize import quantize_onnx
    from hybridkit.exporting.onnx_quantize.comparison import read_inputs

    target = output or Path(f"{source.stem}.packed.onnx")
    feeds = None if inputs is None else read_inputs(inputs)
    budget = None
    if within or max_size:
        report, budget = _to_budget(source, target, feeds or [], within, max_size, frontier, how)
    else:
        if frontier:
            raise UsageError("--frontier goes with --within or --max-size; say one of them, or drop it")
        report = quantize_onnx(source, target, inputs=feeds, **how)
    if json:
        document = {"report": report, "ratio": report.ratio}
        emit_json("quantize", {**document, "budget": budget} if budget else document)
        return
    _print(source, report)
    if budget:
        from hybridkit.cli._budget import frontier_table

        console().print(frontier_table(budget))


def _to_budget(
    source: Path,
    target: Path,
    feeds: Sequence[Feed],
    within: str | None,
    max_size: str | None,
    frontier: Path | None,
    how: Mapping[str, Any],
) -> tuple[OnnxReport, BudgetReport]:
    from hybridkit.cli._budget import check_drawing, draw_frontier, refuse_idle
    from hybridkit.exporting.onnx_quantize.budget import quantize_onnx_within
    from hybridkit.quant.budgets import Budget

    names = ("quantizer", "options", "max_error", "more_bits")
    refuse_idle([name for name in names if how.get(name)])
    budget = Budget.parse(within, max_size)
    if frontier:
        check_drawing(frontier)
    said = {name: value for name, value in how.items() if name not in names}
    with progress() as display:
        bar = display.add_task("Trying layers", total=None)

        def seen(layer: int, layers: int) -> None:
            display.update(bar, total=layers, completed=layer)

        report, found = quantize_onnx_within(source, target, budget, feeds, seen=seen, **said)
    if frontier:
        draw_frontier(found, frontier)
    return report, found


def _print(source: Path, report: OnnxReport) -> None:
    _print_layers(report.layers, report.measured)
    print(
        f"{report.path}: {report.bytes_after:,} bytes, {report.ratio:.2f}x smaller than {source.name} "
        f"({report.bytes_before:,} bytes); opset {report.opset}, ONNX Runtime {report.runtime} or newer"
    )
    if report.comparison is None:
        print(f"It loads, but was not compared: {source.name} runs on no generated inputs; say --inputs")
        return
    for found in report.comparison.outputs:
        print(
            f"On {report.comparison.inputs} inputs {found.output} has the relative error "
            f"{found.relative_error:.4f}, the cosine similarity {found.cosine:.4f}"
        )
    if report.native is not None:
        how = "bit for bit" if report.native == "equal" else "to float32 rounding"
        print(f"Native operators and portable bodies agree {how}")


def _print_layers(layers: Sequence[LayerReport], measured: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Layer")
    table.add_column("Operator")
    for heading in ("Shape", "Bits", f"Error of {measured}", "Bytes", "were"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for layer in layers:
        table.add_row(
            escape(layer.name),
            layer.op,
            "x".join(map(str, layer.shape)),
            f"{layer.bits:.2f}",
            "" if layer.error is None else f"{layer.error:.4f}",
            f"{layer.bytes_after:,}",
            f"{layer.bytes_before:,}",
            layer.quantizer or f"stays: {layer.reason}",
        )
    console().print(table)
