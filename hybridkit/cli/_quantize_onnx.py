"""`hybridkit quantize model.onnx`: ONNX file to ONNX file. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridkit.cli._shared import console, emit_json
from hybridkit.errors import UsageError

if TYPE_CHECKING:
    from hybridkit.exporting.onnx_quantize import LayerReport, OnnxReport


def run(
    source: Path,
    output: Path | None,
    *,
    idle: Mapping[str, Any],
    json: bool,
    inputs: Path | None = None,
    **how: Any,
) -> None:
    """Quantise, verify, print. `idle`: flags that are for networks; `how`: what `quantize_onnx` takes."""
    for name in idle:
        flag = name.replace("_", "-")
        raise UsageError(f"--{flag} is for networks, and {source.name} is an ONNX file; drop it")

    from hybridkit.exporting.onnx_quantize import quantize_onnx
    from hybridkit.exporting.onnx_quantize.comparison import read_inputs

    target = output or Path(f"{source.stem}.packed.onnx")
    report = quantize_onnx(source, target, inputs=None if inputs is None else read_inputs(inputs), **how)
    if json:
        emit_json("quantize", {"report": report, "ratio": report.ratio})
    else:
        _print(source, report)


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
