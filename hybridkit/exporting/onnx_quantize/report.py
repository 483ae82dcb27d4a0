"""What quantising an ONNX file did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybridkit.exporting.onnx_quantize.comparison import Comparison
from hybridkit.exporting.protocol import Agreement


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What became of one layer.

    shape: of the weight in the source. quantizer: None where the layer stays as it is, for `reason`.
    bits: of information per weight. error: relative, of the layer's output on the given inputs, or of its
    weight where there are none; of the last attempt where the layer stays. bytes: of weight and scales.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    quantizer: str | None
    bits: float
    error: float | None
    bytes_before: int
    bytes_after: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OnnxReport:
    """A written file. bytes: of whole files, external data included.

    runtime: the oldest ONNX Runtime that loads it.
    measured: what the layers' errors are of. comparison: None where the source does not run on generated
    inputs and none were given. native: see Verification.
    """

    path: Path
    opset: int
    runtime: str
    measured: Literal["weights", "outputs"]
    layers: tuple[LayerReport, ...]
    bytes_before: int
    bytes_after: int
    comparison: Comparison | None
    native: Agreement | None

    @property
    def ratio(self) -> float:
        """How many times smaller than the source."""
        return self.bytes_before / self.bytes_after
