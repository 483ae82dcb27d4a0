"""Quantizers for weights that are NumPy arrays: the post-training ones of hybridkit/quant, without torch.

All compute in float32 row by row of a weight [N, K], with the codes and scales that their twins in torch
give. A row of zeros has the scale 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol, cast

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray

from hybridkit.errors import UsageError
from hybridkit.options import construct, nearest, option

TINY: Final = np.finfo(np.float32).tiny
CLIPS: Final = tuple(0.88**i for i in range(16))  # shares of the largest magnitude to try as clipping point

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Quantized:
    """weight[n, k] = scale[n, k // group_size] * codes[n, k]; group_size 0 means one scale per row, [N]."""

    codes: NDArray[np.int8]
    scale: Floats
    group_size: int = 0

    def dequantize(self) -> Floats:
        """The weight that this stands for, float32 [N, K]."""
        if not self.group_size:
            return self.codes * self.scale[:, None]
        return self.codes * np.repeat(self.scale, self.group_size, axis=1)[:, : self.codes.shape[1]]


class Quantizer(Protocol):
    """Codes and scales of a float32 weight [N, K]; `prefix` names the operators that read the codes."""

    @property
    def prefix(self) -> str:
        """Ternary, Binary, NBit2, NBit4 or NBit8."""
        ...

    @property
    def bits(self) -> int:
        """Stored bits of a code."""
        ...

    def quantize(self, weight: Floats) -> Quantized:
        """Deterministic."""
        ...


class TernaryAbsmean:
    """BitNet b1.58 (arXiv 2402.17764): scale = mean|w|, codes = round(clip(w / scale, -1, 1))."""

    prefix: ClassVar = "Ternary"
    bits: ClassVar = 2

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """What can be set."""

        scale_multiplier: Annotated[float, Gt(0)] = option(
            1.0, "multiplies mean|w|; above 1 gives more zeros"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def quantize(self, weight: Floats) -> Quantized:
        """Codes and scale of a weight [N, K]."""
        scale = np.abs(weight).mean(axis=1) * np.float32(self.options.scale_multiplier)
        return Quantized(_round(weight, scale[:, None], -1, 1), scale)


class TernaryMSE:
    """The threshold and the scale of least squared error (TWN, arXiv 1605.04711), exactly.

    Keeping the k largest magnitudes, of sum c_k, with the scale c_k / k leaves ||w||^2 - c_k^2 / k; every k
    is tried.
    """

    prefix: ClassVar = "Ternary"
    bits: ClassVar = 2

    def quantize(self, weight: Floats) -> Quantized:
        """Codes and scale of a weight [N, K]."""
        magnitude = np.abs(weight)
        ordered = -np.sort(-magnitude, axis=1)
        totals = np.cumsum(ordered, axis=1, dtype=np.float64)
        best = np.argmax(totals**2 / np.arange(1, weight.shape[1] + 1), axis=1)[:, None]
        kept = (magnitude >= np.take_along_axis(ordered, best, axis=1)) & (magnitude > 0)
        total = np.sum(magnitude, axis=1, dtype=np.float64, where=kept)
        scale = (total / np.maximum(kept.sum(axis=1), 1)).astype(np.float32)
        return Quantized((np.sign(weight) * kept).astype(np.int8), scale)


class Binary:
    """Scaled sign (XNOR-Net, arXiv 1603.05279): scale = mean|w|, codes = sign(w), sign(0) = +1."""

    prefix: ClassVar = "Binary"
    bits: ClassVar = 1

    def quantize(self, weight: Floats) -> Quantized:
        """Codes and scale of a weight [N, K]."""
        return Quantized(np.where(weight >= 0, 1, -1).astype(np.int8), np.abs(weight).mean(axis=1))


class NBit:
    """codes = clip(round(w / scale), -2^(b-1), 2^(b-1) - 1), with a scale for each group along a row.

    `scale=mse` also tries to clip the largest magnitude, down to 15 % of it, and takes the least squared
    error; with 8 bits that never pays.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """What can be set."""

        bits: Literal[2, 4, 8] = option(4, "bits per weight")
        group_size: Annotated[int, Ge(0)] = option(32, "weights per scale along the row; 0: the whole row")
        scale: Literal["mse", "absmax"] = option(
            "mse", "clip for least squared error, or keep the largest weight"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.prefix = f"NBit{self.options.bits}"
        self.bits: int = self.options.bits
        self._top = 2 ** (self.options.bits - 1) - 1

    def quantize(self, weight: Floats) -> Quantized:
        """Codes and scale of a weight [N, K]."""
        N, K = weight.shape
        group = self.options.group_size or K
        groups = np.pad(weight, ((0, 0), (0, -K % group))).reshape(N, -1, group)
        scale = self._scale(groups)
        codes = _round(groups, scale, -self._top - 1, self._top).reshape(N, -1)[:, :K]
        return (
            Quantized(codes, scale[:, :, 0], group)
            if self.options.group_size
            else Quantized(codes, scale[:, 0, 0])
        )

    def _scale(self, groups: Floats) -> Floats:
        widest: Floats = np.abs(groups).max(axis=-1, keepdims=True) / np.float32(self._top)
        if self.options.scale == "absmax" or self.bits == 8:
            return widest
        unit = groups / np.maximum(widest, TINY)
        best, least = np.ones_like(widest), np.full_like(widest, np.inf)
        for clip in map(np.float32, CLIPS):
            rounded = np.clip(np.rint(unit / clip), -self._top - 1, self._top)
            error = ((rounded * clip - unit) ** 2).sum(axis=-1, keepdims=True)
            best = np.where(error < least, clip, best)
            least = np.minimum(error, least)
        return widest * best


QUANTIZERS: Final[Mapping[str, type[Any]]] = {
    "ternary-mse": TernaryMSE,
    "ternary-absmean": TernaryAbsmean,
    "binary": Binary,
    "nbit": NBit,
}


def make_quantizer(name: str, options: Mapping[str, Any] | None = None) -> Quantizer:
    """The quantizer called `name`. Raises UsageError for a name or an option that does not exist here."""
    if name not in QUANTIZERS:
        raise UsageError(
            f"no quantizer for ONNX files is called {name!r}; {nearest(name, QUANTIZERS)} "
            "(one that learns, or a plugin's, quantises a network in torch)"
        )
    return cast(Quantizer, construct(QUANTIZERS[name], options or {}, name))


def _round(values: Floats, scale: Floats, low: int, high: int) -> NDArray[np.int8]:
    """clip(round_half_even(values / scale), low, high)."""
    return np.clip(np.rint(values / np.maximum(scale, TINY)), low, high).astype(np.int8)
