"""ONNX file -> ONNX file with quantised weights, without torch and without further training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hybridkit import __version__
from hybridkit.errors import FileError, HybridkitError, UsageError
from hybridkit.exporting import files
from hybridkit.exporting.agreement import check_native
from hybridkit.exporting.assembly import assemble
from hybridkit.exporting.door import Admitted, admit
from hybridkit.exporting.folding import fold_batch_normalization
from hybridkit.exporting.onnx_quantize import measurement
from hybridkit.exporting.onnx_quantize.comparison import (
    SILENT,
    Comparison,
    Feed,
    Reference,
    compare,
    run_source,
)
from hybridkit.exporting.onnx_quantize.loading import load, raise_opset
from hybridkit.exporting.onnx_quantize.products import Product, Unfit, find
from hybridkit.exporting.onnx_quantize.report import LayerReport, OnnxReport
from hybridkit.exporting.onnx_quantize.rounding import Rounding
from hybridkit.exporting.onnx_quantize.selection import choose, make_steps, quantize_layer
from hybridkit.exporting.onnx_quantize.substitution import lower
from hybridkit.exporting.protocol import Agreement
from hybridkit.exporting.quiet import quiet
from hybridkit.exporting.runtimes import check_runtime, oldest_runtime
from hybridkit.packing.activations import Activations
from hybridkit.runtime.session import session

__all__ = ["LayerReport", "OnnxReport", "quantize_onnx"]


def quantize_onnx(
    source: Path,
    output: Path,
    *,
    quantizer: str = "ternary-mse",
    options: Mapping[str, Any] | None = None,
    activations: Activations = "float",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_error: float | None = None,
    more_bits: bool = False,
    inputs: Feed | Sequence[Feed] | None = None,
) -> OnnxReport:
    """Write `source` with quantised weights to `output`, which appears whole and verified or not at all.

    MatMul, Gemm and Conv with a constant weight become our operators (ternary, binary), MatMulNBits (n-bit
    products) or a Conv that unpacks its weight (n-bit convolutions, with float activations).
    quantizer, options: a registered quantizer's name, and its options.
    include, exclude: patterns of layer names as in a shell; all layers by default.
    max_error: layers whose relative error is above it stay as they are, or, with `more_bits`, go to 4 and
    then 8 bits. inputs: arrays by input name, once or several times. On half of what reaches a layer from
    them its codes are fitted so that they keep its output, on the other half the error of that is measured.

    Raises UsageError for arguments that do not fit, FileError for files, HybridkitError where no layer is
    left or the model cannot be written, GateError where native operators and portable bodies differ.
    """
    steps = make_steps(quantizer, options, more_bits, max_error)
    check_paths(source, output, activations)
    feeds = [inputs] if isinstance(inputs, Mapping) else list(inputs or [])
    opened = open_layers(source, steps, feeds[0] if feeds else None, include, exclude)
    each = dict.fromkeys(opened.chosen, steps)
    return write_quantized(opened, output, each, activations, max_error, feeds)


@dataclass(frozen=True, slots=True)
class Opened:
    """A source, what it gives, its graph, and its layers: all, and by name those that may be quantised."""

    admitted: Admitted
    reference: Reference | None
    model: ir.Model
    layers: list[Product | Unfit]
    chosen: dict[str, Product]


@quiet("onnxscript", "onnx_ir")
def open_layers(
    source: Path,
    steps: Sequence[Rounding],
    feed: Feed | None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Opened:
    """Read a source, run it on `feed` or on generated inputs, and raise its opset where `steps` need that.

    It runs before its graph is looked at: what ONNX Runtime refuses is refused.
    """
    admitted = admit(source)
    reference = run_source(source, feed)
    model = load(admitted)
    layers = find(model)
    chosen = choose(layers, include, exclude)
    if any(not step.is_nbit for step in steps) or any(p.geometry for p in chosen.values()):
        model = raise_opset(model, source)
        layers = find(model)
        chosen = choose(layers, include, exclude)
    return Opened(admitted, reference, model, layers, chosen)


@np.errstate(all="ignore")  # weights that overflow
@quiet("onnxscript", "onnx_ir")
def write_quantized(
    opened: Opened,
    output: Path,
    steps: Mapping[str, Sequence[Rounding]],
    activations: Activations,
    max_error: float | None,
    feeds: Sequence[Feed],
) -> OnnxReport:
    """Quantise layers in place, and write the file; see `quantize_onnx`.

    steps: what to try on each layer, by its name; nothing, and layers that are not there, stay as they are.
    """
    model, source = opened.model, opened.admitted.path
    int8 = activations == "int8"
    watched = [product for name, product in opened.chosen.items() if steps.get(name)]
    seen = measurement.activations(model, watched, feeds) if feeds and watched else {}
    reports = [
        quantize_layer(model, layer, steps, seen.get(layer.name), int8, max_error) for layer in opened.layers
    ]
    if all(report.quantizer is None for report in reports):
        raise HybridkitError(f"{source.name}: no layer was quantised; {_reasons(reports)}")
    fold_batch_normalization(model)
    lower(model)
    assemble(model, model.graph.opset_imports[""])
    _describe(model, reports, activations)
    runtime = oldest_runtime(model)
    check_runtime(runtime)
    with files.staged(output) as staged:
        files.save(model, staged)
        comparison, native = _verify(staged, opened.reference, opened.admitted.strict)
        bytes_after = files.written_bytes(staged)
    return OnnxReport(
        path=output,
        opset=model.graph.opset_imports[""],
        runtime=runtime,
        measured="outputs" if feeds else "weights",
        layers=tuple(reports),
        bytes_before=opened.admitted.file_bytes,
        bytes_after=bytes_after,
        comparison=comparison,
        native=native,
    )


def check_paths(source: Path, output: Path, activations: str) -> None:
    """Raises UsageError for what does not fit, FileError for a folder that is not there."""
    if activations not in ("int8", "float"):
        raise UsageError(f"no activation mode is called {activations!r}; say int8 or float")
    if output.suffix != ".onnx":
        raise UsageError(f"{output.name}: what {source.name} becomes is an ONNX file; its name ends in .onnx")
    if output.resolve() == source.resolve():
        raise UsageError(f"{output} is the source; say another file with --output")
    if not output.parent.is_dir():
        raise FileError(f"cannot write {output}: there is no folder {output.parent}")


def _reasons(reports: Sequence[LayerReport]) -> str:
    reasons = sorted({report.reason for report in reports})
    return "; ".join(reasons) or "it has no MatMul, Gemm or Conv with a constant weight"


def _describe(model: ir.Model, reports: Sequence[LayerReport], activations: Activations) -> None:
    """Add to the file's metadata what was done; what stood there stays."""
    layers = {
        r.name: {
            "kind": r.op,
            "shape": r.shape,
            "bits": round(r.bits, 4),
            "quantizer": r.quantizer,
            "activations": activations,
        }
        for r in reports
        if r.quantizer is not None
    }
    model.metadata_props["hybridkit.version"] = __version__
    model.metadata_props["hybridkit.target"] = "onnx"
    model.metadata_props["hybridkit.layers"] = json.dumps(layers, separators=(",", ":"))


def _verify(
    staged: Path, reference: Reference | None, strict: bool
) -> tuple[Comparison | None, Agreement | None]:
    """The file is valid, loads, runs, and gives the same by portable bodies and native operators."""
    if strict:  # a stranger's file that runs but is not valid by the letter stays as it is
        files.check_form(staged)
    if reference is None:
        for native in (False, True):
            session(staged, native=native, low_memory=True, log_severity_level=SILENT)
        return None, None
    return compare(reference, staged), check_native(staged, reference.feed)
