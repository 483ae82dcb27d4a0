"""Which layers are quantised, and with how many bits."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from hybridkit.errors import UsageError
from hybridkit.exporting.onnx_quantize.measurement import Seen, output_error, relative_error
from hybridkit.exporting.onnx_quantize.products import Product, Unfit
from hybridkit.exporting.onnx_quantize.report import LayerReport
from hybridkit.exporting.onnx_quantize.rounding import Quantized, Rounding, make_rounding
from hybridkit.exporting.onnx_quantize.substitution import stored_bytes, substitute

_MORE_BITS: Final = (4, 8)
_GROUP: Final = 32  # weights per scale where more bits are taken


def make_steps(
    quantizer: str, options: Mapping[str, Any] | None, more_bits: bool, max_error: float | None
) -> list[Rounding]:
    """The quantizers to try on a layer, in order."""
    if more_bits and max_error is None:
        raise UsageError("more bits are for layers above a largest error; say it with --max-error")
    if max_error is not None and not max_error > 0:
        raise UsageError(f"the largest error must be above 0, not {max_error}")
    first = make_rounding(quantizer, options)
    more = [bits for bits in _MORE_BITS if more_bits and bits > first.stored_bits]
    return [first, *(make_rounding("nbit", {"bits": bits, "group_size": _GROUP}) for bits in more)]


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
    steps: Mapping[str, Sequence[Rounding]],
    seen: Seen | None,
    int8: bool,
    max_error: float | None,
) -> LayerReport:
    """Quantise a layer in the graph, or leave it, and say which. `steps`: what to try, by layer.

    With `seen`, codes are fitted to what reaches the layer, unless that is no better on what was kept of it.
    """
    before = layer.weight.nbytes

    def stays(reason: str, error: float | None = None) -> LayerReport:
        bits = 8.0 * layer.weight.itemsize
        shape = tuple(layer.weight.shape)
        return LayerReport(layer.name, layer.node.op_type, shape, None, bits, error, before, before, reason)

    if isinstance(layer, Unfit):
        return stays(layer.reason)
    if layer.name not in steps:
        return stays("not chosen by name")
    if not steps[layer.name]:
        return stays("what a budget leaves it")
    matrix, error = layer.matrix(), None
    for step in steps[layer.name]:
        quantized = step.quantize(matrix)
        rounding = step.holding(quantized)
        after = stored_bytes(layer, rounding, quantized, int8)
        if after >= before:
            return stays("would not be smaller", error)
        if seen is None:
            error = relative_error(matrix, quantized.dequantize())
        else:
            quantized, error = _better(layer, step, quantized, seen, int8 and not rounding.is_nbit)
        if max_error is None or error <= max_error:
            substitute(model, layer, rounding, quantized, int8)
            bits, shape = rounding.quantizer.bits, tuple(layer.shape)
            return LayerReport(layer.name, layer.op, shape, rounding.name, bits, error, before, after)
    return stays(f"error above {max_error:g}", error)


def _better(
    layer: Product, step: Rounding, rounded: Quantized, seen: Seen, int8: bool
) -> tuple[Quantized, float]:
    """Codes fitted to inputs, or those that were rounded: whichever has the smaller error on other inputs."""
    tries = [rounded]
    fitted = None if seen.gram is None else step.fit(layer.matrix(), seen.gram, seen.count)
    if fitted is not None:
        tries.append(fitted)
    errors = [output_error(layer, seen.x, each.dequantize(), int8) for each in tries]
    best = int(np.argmin(errors))
    return tries[best], errors[best]
