"""The order of the codes in a file: tiles, which the native kernels read where they lie, or row-major.

A tile has 16 rows and a multiple of 16 columns (1-bit: 32), so that a matrix of other sizes is padded. Where
that costs more than an eighth they stay row-major; a kernel then re-orders them when it loads the file. The
layouts are those of packing/tiles.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybridkit.exporting.dense import restore_two_bits
from hybridkit.exporting.functions import DENSE, ROW_MAJOR, TILED
from hybridkit.exporting.graph import PackedNode, array_of, gathers, initializer, packed_nodes
from hybridkit.exporting.scales import widen_scales
from hybridkit.packing.tiles import tile, tiled_shape, untile

MOST_PADDING: Final = 1 / 8  # of the row-major bytes


def make_row_major(model: ir.Model) -> None:
    """Layers of a file in the form that every rewriting reads: codes row-major, scales float32."""
    restore_two_bits(model)
    widen_scales(model)
    for layer in packed_nodes(model):
        if layer.prefix.startswith("NBit") and layer.has_layout and layer.group_size >= layer.K:
            _scale_rows(layer)
    for codes, layers in _by_codes(model):
        first = layers[0]
        if first.layout != ROW_MAJOR:
            _replace(codes, ROW_MAJOR, _rows(first))


def make_tiled(model: ir.Model) -> None:
    """Tiles for all products whose codes no stock operator reads and that padding makes little larger."""
    for codes, layers in _by_codes(model):
        first = layers[0]
        if first.prefix in DENSE:
            continue
        alike = {(p.kind, p.K, p.positions, p.group) for p in layers}
        others = len(codes.uses()) - len(layers) - sum(gathers(node) for node, _ in codes.uses())
        if others or len(alike) > 1 or first.layout != ROW_MAJOR:
            continue
        rows: NDArray[np.uint8] = array_of(codes)
        if worth_tiling(first.N, first.K, first.bits, first.group):
            tiles = tile(rows, first.K, first.bits, group=first.group, positions=first.positions)
            _replace(codes, TILED[first.kind], tiles)


def worth_tiling(N: int, K: int, bits: int, group: int = 1) -> bool:
    """Whether tiles of a matrix [N, K] take at most an eighth more bytes than its rows."""
    row_major = N * -(-K * bits // 8)
    return int(np.prod(tiled_shape(N, K, bits, group))) <= (1 + MOST_PADDING) * row_major


def _scale_rows(layer: PackedNode) -> None:
    """One group that holds whole rows is a scale [N] per row; our operators have it as [N, 1]."""
    graph = layer.node.graph
    assert graph is not None
    scale = initializer(graph, f"{layer.name}.row_scale", array_of(layer.scale)[:, 0])
    layer.node.replace_input_with(2, scale)
    layer.node.attributes["group_size"] = ir.AttrInt64("group_size", 0)


def _rows(layer: PackedNode) -> NDArray[np.uint8]:
    tiles = array_of(layer.codes)
    return untile(tiles, layer.N, layer.K, layer.bits, group=layer.group, positions=layer.positions)


def _by_codes(model: ir.Model) -> Iterator[tuple[ir.Value, list[PackedNode]]]:
    """Each initializer of codes with the products that read it and say in what order it is."""
    readers: dict[ir.Value, list[PackedNode]] = defaultdict(list)
    for layer in packed_nodes(model):
        held = layer.codes.const_value is not None
        if held and layer.kind in TILED and layer.has_layout:
            readers[layer.codes].append(layer)
    yield from readers.items()


def _replace(codes: ir.Value, layout: int, content: NDArray[np.uint8]) -> None:
    codes.const_value = ir.tensor(content, name=codes.name)
    codes.shape = ir.Shape(content.shape)
    for node, _ in codes.uses():
        node.attributes["layout"] = ir.AttrInt64("layout", layout)
