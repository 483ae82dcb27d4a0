"""Any quantizer with another granularity: one scale for a group of columns, or for a whole weight.

A quantizer gives each row of a matrix [N, K] a scale. So groups are rows of other matrices: the columns that
fill whole groups are seen as [N * (K // size), size], what is left of each row as [N, K % size]; a weight
with one scale is one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from array_api_compat import array_namespace, device

from hybridkit.errors import UsageError
from hybridkit.quant.config import Channel, Granularity, Group
from hybridkit.quant.protocol import QuantizedTensor, Quantizer, Relaxed, relaxed, takes_statistics

if TYPE_CHECKING:
    from torch import Tensor

PATTERN: Final = 4  # columns after which a pattern of codes begins again
_REST = "_rest"  # ends the names of the learnable parameters of the groups that are shorter


def with_granularity(quantizer: Quantizer, granularity: Granularity) -> Quantizer:
    """`quantizer` with this granularity. UsageError where it looks at statistics of whole rows."""
    if isinstance(granularity, Channel):
        return quantizer
    if takes_statistics(quantizer):
        raise UsageError(
            f"{type(quantizer).__name__} looks at whole rows and takes no granularity from outside; "
            "an option of its own may"
        )
    return InGroups(quantizer, granularity.size) if isinstance(granularity, Group) else OnWhole(quantizer)


class InGroups:
    """`quantizer` with one scale for each `size` columns of a row."""

    def __init__(self, quantizer: Quantizer, size: int) -> None:
        self.quantizer, self.size = quantizer, size
        self.levels, self.bits = quantizer.levels, quantizer.bits
        # a pattern of columns goes on from group to group where none is cut
        self.codec = getattr(quantizer, "codec", None) if size % PATTERN == 0 else None

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """Those of the quantizer, for the whole groups and, ending in `_rest`, for the shorter ones."""
        return {
            name + end: value
            for end, columns in self._columns(weight)
            for name, value in self.quantizer.parameters(_rows(weight[:, columns], self.size)).items()
        }

    def quantize(self, weight: Tensor, **parameters: Tensor) -> QuantizedTensor:
        """Codes of `weight` [N, K] and a scale [N, ceil(K / size)]."""
        N, K = weight.shape
        codes, scales, offsets = [], [], []
        for end, columns in self._columns(weight):
            rows = _rows(weight[:, columns], self.size)
            part = self.quantizer.quantize(rows, **_own(parameters, end))
            if part.group_size:
                raise UsageError("the quantizer works in groups already; leave the granularity out")
            codes.append(part.codes.reshape(N, -1))
            scales.append(part.scale.reshape(N, -1))
            if part.offset is not None:
                offsets.append(part.offset.reshape(N, -1))
        if not codes:
            xp = array_namespace(weight)
            scales = [xp.zeros((N, -(-K // self.size)), dtype=xp.float32, device=device(weight))]
            codes = [xp.zeros_like(weight, dtype=xp.int8)]
            offsets = scales if self._has_offset(weight) else []
        xp = array_namespace(*codes)
        offset = xp.concat(offsets, axis=1) if offsets else None
        return QuantizedTensor(xp.concat(codes, axis=1), xp.concat(scales, axis=1), self.size, offset)

    def _has_offset(self, weight: Tensor) -> bool:
        """Whether the quantizer gives offsets, which one row of a zero tells."""
        row = array_namespace(weight).zeros((1, 1), dtype=weight.dtype, device=device(weight))
        return self.quantizer.quantize(row, **self.quantizer.parameters(row)).offset is not None

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor, **parameters: Tensor) -> Tensor:
        """The dequantised weight with the quantizer's own gradient in each group."""
        made = [
            self.quantizer.fake_quantize(rows, part, **own)
            for rows, part, own in self._parts(weight, quantized, parameters)
        ]
        return self._joined(made, weight)

    def anneal(
        self, weight: Tensor, quantized: QuantizedTensor, progress: float, **parameters: Tensor
    ) -> Relaxed:
        """Each group as the quantizer has it on the ramp."""
        made = [
            relaxed(self.quantizer, rows, part, progress, **own)
            for rows, part, own in self._parts(weight, quantized, parameters)
        ]
        biases = [soft.bias for soft in made if soft.bias is not None]
        soft = self._joined([soft.weight for soft in made], weight)
        return Relaxed(soft, self._joined(biases, weight) if biases else None)

    def _parts(
        self, weight: Tensor, quantized: QuantizedTensor, parameters: dict[str, Tensor]
    ) -> Iterator[tuple[Tensor, QuantizedTensor, dict[str, Tensor]]]:
        """The groups as rows, what became of them, and their parameters: the whole groups, then the rest."""
        whole = weight.shape[1] // self.size
        for end, columns in self._columns(weight):
            mine = slice(whole, None) if end else slice(whole)
            codes = _rows(quantized.codes[:, columns], self.size)
            part = replace(quantized, codes=codes, group_size=0).with_numbers(partial(_of_rows, mine))
            yield _rows(weight[:, columns], self.size), part, _own(parameters, end)

    @staticmethod
    def _joined(parts: Sequence[Tensor], weight: Tensor) -> Tensor:
        """Parts, which are rows of groups, as one matrix of the shape of `weight`."""
        rows = [part.reshape(len(weight), -1) for part in parts]
        return array_namespace(weight).concat(rows, axis=1) if rows else weight.float()

    def _columns(self, weight: Tensor) -> list[tuple[str, slice]]:
        """The columns that fill whole groups, and the others with `_rest`; what is empty is left out."""
        N, K = weight.shape
        whole = K - K % self.size
        parts = [("", slice(whole)), (_REST, slice(whole, K))]
        return [(end, part) for end, part in parts if N * len(range(K)[part])]


class OnWhole:
    """`quantizer` with one scale for a whole weight, repeated for each row."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self.levels, self.bits = quantizer.levels, quantizer.bits

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """Those of the quantizer for one row."""
        return self.quantizer.parameters(weight.reshape(1, -1))

    def quantize(self, weight: Tensor, **parameters: Tensor) -> QuantizedTensor:
        """Codes of `weight` [N, K] and a scale [N] that is the same everywhere."""
        row = self.quantizer.quantize(weight.reshape(1, -1), **parameters)
        if row.group_size:
            raise UsageError("the quantizer works in groups already; leave the granularity out")
        spread = row.with_numbers(lambda numbers: numbers.expand(weight.shape[0]).contiguous())
        return replace(spread, codes=row.codes.view(weight.shape))

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor, **parameters: Tensor) -> Tensor:
        """The dequantised weight with the quantizer's own gradient."""
        row = self._row(quantized)
        if weight.numel() == 0:
            return weight.float()
        return self.quantizer.fake_quantize(weight.reshape(1, -1), row, **parameters).view(weight.shape)

    def anneal(
        self, weight: Tensor, quantized: QuantizedTensor, progress: float, **parameters: Tensor
    ) -> Relaxed:
        """The row as the quantizer has it on the ramp."""
        if weight.numel() == 0:
            return Relaxed(weight.float())
        row = self._row(quantized)
        soft = relaxed(self.quantizer, weight.reshape(1, -1), row, progress, **parameters)
        bias = None if soft.bias is None else soft.bias.view(weight.shape)
        return Relaxed(soft.weight.view(weight.shape), bias)

    @staticmethod
    def _row(quantized: QuantizedTensor) -> QuantizedTensor:
        """The weight as the one row that it was quantised as."""
        first = quantized.with_numbers(lambda numbers: numbers[:1])
        return replace(first, codes=quantized.codes.reshape(1, -1))


def _rows(matrix: Tensor, size: int) -> Tensor:
    """[N, C] as rows that have a scale each: [N * C / size, size], or itself where C < size."""
    return matrix.reshape(-1, min(size, matrix.shape[1]))


def _of_rows(groups: slice, numbers: Tensor) -> Tensor:
    """Scales or offsets [N, all groups] of some groups, as those of the rows that `_rows` makes of them."""
    return numbers[:, groups].reshape(-1)


def _own(parameters: dict[str, Tensor], end: str) -> dict[str, Tensor]:
    """The parameters that belong to the part of this ending, under the quantizer's own names."""
    if end:
        return {name.removesuffix(end): p for name, p in parameters.items() if name.endswith(end)}
    return {name: p for name, p in parameters.items() if not name.endswith(_REST)}
