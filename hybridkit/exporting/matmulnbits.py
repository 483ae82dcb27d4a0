"""The exporter to stock operators: ternary and binary products as ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from torch import nn

from hybridkit.exporting import lowering
from hybridkit.exporting.graph import Emitter, PackedNode, rewrite
from hybridkit.exporting.onnx import write_onnx
from hybridkit.exporting.protocol import ExportReport, ExportRequest
from hybridkit.options import option
from hybridkit.packing.model import PackedModel


class MatMulNBitsExporter:
    """Stock ONNX Runtime operators only; activations in int8 blocks, so close to the network, not equal.

    A matrix product is one `com.microsoft.MatMulNBits` (2 bits for ternary and binary codes) with scales of
    one, followed by the row's scale and the bias. Everything else becomes stock operators where it stands.
    """

    suffixes = (".matmulnbits.onnx",)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of the exporter."""

        accuracy_level: Literal[0, 1, 2, 3, 4] = option(
            lowering.INT8, "of MatMulNBits: 4 multiplies int8 activations (fast), 1 float32 ones"
        )
        block_size: Literal[32, 64, 128] = option(
            lowering.BLOCK, "weights that share a scale, and activations"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def export(
        self, module: nn.Module, packed: PackedModel | None, path: Path, request: ExportRequest
    ) -> ExportReport:
        """Write the file; see Exporter."""
        return write_onnx(
            module,
            packed,
            path,
            request,
            target="matmulnbits",
            lower=self.lower,
            approximate=packed is not None and bool(packed.layers),
            inline=True,
        )

    def lower(self, model: ir.Model) -> None:
        """Rewrite a graph whose codes are row-major."""
        rewrite(model, {(prefix, "MatMul"): self._matmul for prefix in lowering.PREFIXES})
        lowering.portable(model)

    def _matmul(self, e: Emitter, layer: PackedNode) -> ir.Value:
        if layer.group_size and not lowering.fits_blocks(layer):
            return lowering.nbit_matmul(e, layer)
        ones = np.ones(layer.N, np.float32) if layer.on_output else None
        block, scales = lowering.block_scales(layer, ones, self.options.block_size)

        def compute(x: ir.Value) -> ir.Value:
            level = self.options.accuracy_level
            y = lowering.matmul_nbits(e, layer, x, layer.bits, block, scales, level)
            y = e.node("Mul", y, layer.scale) if layer.on_output else lowering.with_offset(e, layer, x, y)
            return lowering.with_bias(e, layer, y)

        return lowering.in_float32(e, layer, compute)
