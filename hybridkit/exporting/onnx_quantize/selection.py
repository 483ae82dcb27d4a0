"""Which layers are quantised, and with how many bits."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybridkit.errors import UsageError
from hybridkit.exporting.onnx_quantize.measurement import output_error, relative_error
from hybridkit.exporting.onnx_quantize.products import Product, Unfit
from hybridkit.exporting.onnx_quantize.quantizers import Quantized, Quantizer, make_quantizer
from hybridkit.exporting.onnx_quantize.report import LayerReport
from hybridkit.exporting.onnx_quantize.substitution import stored_bytes, substitute

_MORE_BITS: Final = (4, 8)
_BLOCK: Final = 1 << 24  # weights quantised at a time: bounds the temporary arrays

Steps = Sequence[tuple[str, Quantizer]]


def make_steps(
    quantizer: str, options: Mapping[str, Any] | None, more_bits: bool, max_error: float | None
) -> Steps:
    """The quantizers to try on a layer, in order, with their names."""
    if more_bits and max_error is None:
        raise UsageError("more bits are for layers above a largest error; say it with --max-error")
    if max_error is not None and not max_error > 0:
        raise UsageError(f"the largest error must be above 0, not {max_error}")
    steps = [(quantizer, make_quantizer(quantizer, options))]
    if more_bits:
        wider = [make_quantizer("nbit", {"bits": bits}) for bits in _MORE_BITS if bits > steps[0][1].bits]
        steps += [("nbit", made) for made in wider]
    return steps


def choose(
    layers: Sequence[Product | Unfit], include: Sequence[str], exclude: Sequence[str]
) -> dict[str, Product]:
    """The products that the patterns leave. Raises UsageError for a pattern that no layer's name fits."""
    names = [layer.name for layer in layers]
    for pattern in (*include, *exclude):
        if not fnmatch.filter(names, pattern):
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise UsageError(f"no layer's name fits {pattern!r}; layers: {shown or 'none'}")

    def taken(name: str) -> bool:
        return (not include or any(fnmatch.fnmatch(name, p) for p in include)) and not any(
            fnmatch.fnmatch(name, p) for p in exclude
        )

    return {layer.name: layer for layer in layers if isinstance(layer, Product) and taken(layer.name)}


def quantize_layer(
    model: ir.Model,
    layer: Product | Unfit,
    chosen: Mapping[str, Product],
    steps: Sequence[tuple[str, Quantizer]],
    x: NDArray[np.float32] | None,
    int8: bool,
    max_error: float | None,
) -> LayerReport:
    """Quantise a layer in the graph, or leave it, and say which."""
    before = layer.weight.nbytes

    def stays(reason: str, error: float | None = None) -> LayerReport:
        bits = 8.0 * layer.weight.itemsize
        shape = tuple(layer.weight.shape)
        return LayerReport(layer.name, layer.node.op_type, shape, None, bits, error, before, before, reason)

    if isinstance(layer, Unfit):
        return stays(layer.reason)
    if layer.name not in chosen:
        return stays("not chosen by name")
    matrix, error = layer.matrix(), None
    for name, quantizer in steps:
        quantized = _by_blocks(quantizer, matrix)
        after = stored_bytes(layer, quantizer, quantized)
        if after >= before:
            return stays("would not be smaller", error)
        found = quantized.dequantize()
        in_int8 = int8 and not quantizer.prefix.startswith("NBit")
        error = relative_error(matrix, found) if x is None else output_error(layer, x, found, in_int8)
        if max_error is None or error <= max_error:
            substitute(model, layer, quantizer, quantized, int8)
            return LayerReport(
                layer.name, layer.op, tuple(layer.shape), name, _information(quantizer), error, before, after
            )
    return stays(f"error above {max_error:g}", error)


def _by_blocks(quantizer: Quantizer, matrix: NDArray[np.float32]) -> Quantized:
    step = max(1, _BLOCK // matrix.shape[1])
    parts = [quantizer.quantize(matrix[i : i + step]) for i in range(0, len(matrix), step)]
    return Quantized(
        np.concatenate([p.codes for p in parts]),
        np.concatenate([p.scale for p in parts]),
        parts[0].group_size,
    )


def _information(quantizer: Quantizer) -> float:
    return math.log2(3) if quantizer.prefix == "Ternary" else float(quantizer.bits)
