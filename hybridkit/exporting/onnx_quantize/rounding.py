"""The registry's quantizers for weights that are NumPy arrays: without torch, or through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import HybridkitError
from hybridkit.exporting.functions import storage_of
from hybridkit.packing.codecs import Codec, codec, codec_for, operator_codec
from hybridkit.quant.output_fit import Grid, evenly_spaced, fit_output
from hybridkit.quant.protocol import (
    QuantizedTensor,
    Statistics,
    quantize_weight,
    takes_numpy,
    takes_statistics,
)
from hybridkit.registry import registry

if TYPE_CHECKING:
    from hybridkit.quant.protocol import Quantizer

_BLOCK: Final = 1 << 24  # weights quantised at a time: bounds the temporary arrays

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Quantized:
    """A QuantizedTensor of NumPy arrays."""

    codes: NDArray[np.int8]
    scale: Floats
    group_size: int = 0
    offset: Floats | None = None

    @classmethod
    def of(cls, made: QuantizedTensor) -> Quantized:
        """From tensors of torch or arrays."""
        offset = None if made.offset is None else _array(made.offset, np.float32)
        return cls(_array(made.codes, np.int8), _array(made.scale, np.float32), made.group_size, offset)

    def tensor(self) -> QuantizedTensor:
        """The same, typed as what quantizers take."""
        offset = cast(Any, self.offset)
        return QuantizedTensor(cast(Any, self.codes), cast(Any, self.scale), self.group_size, offset)

    def dequantize(self) -> Floats:
        """The weight that this stands for, float32 [N, K]."""
        return cast(Floats, self.tensor().dequantize())


@dataclass(frozen=True, slots=True)
class Rounding:
    """A quantizer under its name; `codec` holds its codes in a file."""

    name: str
    quantizer: Quantizer
    codec: Codec

    @property
    def prefix(self) -> str:
        """Of the operators that read the codes: Ternary, Binary, NBit2, NBit4 or NBit8."""
        return storage_of(self.codec.name).prefix

    @property
    def is_nbit(self) -> bool:
        """Whether products become MatMulNBits."""
        return self.prefix.startswith("NBit")

    @property
    def stored_bits(self) -> int:
        """Bits of a code in the file."""
        return storage_of(self.codec.name).bits

    def holding(self, found: Quantized) -> Rounding:
        """Itself; with n-bit codes where there are groups or offsets, which no other operator has."""
        inside = found.tensor().on_output
        return self if inside or self.is_nbit else replace(self, codec=codec("nbit2"))

    def fit(self, weight: Floats, gram: Floats, count: int) -> Quantized | None:
        """As `quantize`, for inputs with these second moments, [K, K], of `count`; None if that is no other.

        A quantizer that takes statistics sees to it itself; others' codes and scales are fitted.
        """
        if takes_statistics(self.quantizer):
            return self._quantized(weight, Statistics(cast(Any, gram), count))
        levels = self.quantizer.levels
        if not evenly_spaced(levels):
            return None
        return Quantized.of(fit_output(weight, gram, self.quantize(weight).tensor(), Grid.of(levels)))

    def quantize(self, weight: Floats) -> Quantized:
        """Codes and scales of a float32 weight [N, K]."""
        options = getattr(self.quantizer, "options", None)
        own_rows = takes_numpy(self.quantizer) and getattr(options, "granularity", "channel") == "channel"
        step = max(1, _BLOCK // weight.shape[1]) if own_rows else len(weight)
        parts = [self._quantized(weight[i : i + step]) for i in range(0, len(weight), step)]
        offsets = [part.offset for part in parts if part.offset is not None]
        return Quantized(
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.scale for part in parts]),
            parts[0].group_size,
            np.concatenate(offsets) if offsets else None,
        )

    def _quantized(self, rows: Floats, statistics: Statistics | None = None) -> Quantized:
        given: Any = rows
        if not takes_numpy(self.quantizer):
            import torch

            given = torch.from_numpy(np.ascontiguousarray(rows))
            if statistics:
                gram: Any = statistics.gram
                statistics = Statistics(torch.from_numpy(gram), statistics.count)
        return Quantized.of(quantize_weight(self.quantizer, given, statistics))


def _array(found: Any, kind: type[np.generic]) -> NDArray[Any]:
    """A torch tensor or an array as an array."""
    return np.asarray(found.detach().cpu().numpy() if hasattr(found, "detach") else found, kind)


def make_rounding(name: str, options: Mapping[str, Any] | None = None) -> Rounding:
    """The quantizer that the registry knows as `name`, with these options.

    Raises UsageError for a name or an option that does not exist, HybridkitError for a quantizer that
    computes with torch where torch is not installed.
    """
    try:
        quantizer = registry().create("quantizer", name, options)
        if not takes_numpy(quantizer):
            import torch  # noqa: F401
    except (ModuleNotFoundError, HybridkitError) as error:
        missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        if not isinstance(missing, ModuleNotFoundError):
            raise
        raise HybridkitError(
            f"the quantizer {name!r} needs {missing.name}, which is not installed; "
            "install it, or take ternary-mse, ternary-absmean, binary or nbit"
        ) from error
    return Rounding(name, quantizer, codec(operator_codec(codec_for(quantizer.levels).name)))
