"""Ternary codes of a file in fewer than two bits.

3:4-sparse ones take 1.25 bits, others, where that is asked for, 1.6: in base 3 five are a byte. Products of
such codes with a scale per row are operators of their own, in base 3 those with int8 activations. Others, in
groups and of convolutions, are repacked while the file loads: a node in front of the product makes row-major
two-bit codes of them, out of constants, so that a runtime does it once.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybridkit.exporting.bodies import BASE3_REPACK, SPARSE34_REPACK
from hybridkit.exporting.functions import BASE3, DENSE, DOMAIN, ROW_MAJOR, SPARSE34
from hybridkit.exporting.graph import PackedNode, array_of, initializer, packed_nodes
from hybridkit.packing.codecs import SPARSE, Codec, codec

_TERNARY: Final = "Ternary"
_FIRST: Final = {_TERNARY: 0, "NBit2": 1}  # the digit of -1, by the prefix of the operators that read it
_KINDS: Final = ("MatMul", "Conv")
_REPACKS: Final[dict[str, Codec]] = {BASE3_REPACK: codec("base3"), SPARSE34_REPACK: SPARSE}


def use_sparse_products(model: ir.Model) -> None:
    """Rewrite ternary matrix products whose codes, which are row-major, are 3:4-sparse."""
    for layer in _ternary(model):
        if layer.prefix != _TERNARY or layer.kind != "MatMul":
            continue
        integers = layer.integers()
        if SPARSE.holds(integers):
            _exchange(model, layer, integers, SPARSE34)


def store_densely(model: ir.Model) -> None:
    """Rewrite the codes of other ternary products."""
    for layer in _ternary(model):
        integers = layer.integers()
        if SPARSE.holds(integers):
            _rewrite(model, layer, integers, SPARSE34_REPACK)
        elif layer.prefix == _TERNARY and layer.kind == "MatMul" and layer.int8:
            _exchange(model, layer, integers, BASE3)
        elif integers.min(initial=0) >= -1 and integers.max(initial=0) <= 1:
            _rewrite(model, layer, integers, BASE3_REPACK)


def _ternary(model: ir.Model) -> list[PackedNode]:
    """The ternary products of a graph with row-major codes that nothing else reads."""
    return [
        layer
        for layer in packed_nodes(model)
        if layer.prefix in _FIRST
        and layer.kind in _KINDS
        and layer.has_layout
        and layer.codes.const_value is not None
        and len(layer.codes.uses()) == 1
        and layer.layout == ROW_MAJOR
    ]


def restore_two_bits(model: ir.Model) -> None:
    """The inverse of both: two-bit codes as initializers."""
    for layer in list(packed_nodes(model)):
        if layer.prefix in DENSE:
            _exchange(model, layer, layer.integers(), _TERNARY)
    for node in list(model.graph.all_nodes()):
        if node.domain != DOMAIN or node.op_type not in _REPACKS:
            continue
        packed, repacked = node.inputs[0], node.outputs[0]
        assert packed is not None
        assert node.graph is not None
        K, first = node.attributes["K"].as_int(), node.attributes["first"].as_int()
        integers = _REPACKS[node.op_type].unpack(array_of(packed), K)
        rows = codec("nbit2" if first else "two-bit").pack(integers)
        name = repacked.name or "codes"
        repacked.name = f"{name}.repacked"
        value = initializer(model.graph, name, rows)
        ir.convenience.replace_all_uses_with(repacked, value)
        node.graph.remove(node, safe=True)


def _exchange(model: ir.Model, layer: PackedNode, integers: NDArray[np.int8], prefix: str) -> None:
    """The codes of a product as the operator of another prefix reads them."""
    rows = codec(DENSE.get(prefix, "two-bit")).pack(integers)
    name = layer.codes.name or "codes"
    del model.graph.initializers[name]
    layer.node.replace_input_with(1, initializer(model.graph, name, rows))
    layer.node.op_type = layer.node.op_type.replace(layer.prefix, prefix)


def _rewrite(model: ir.Model, layer: PackedNode, integers: NDArray[np.int8], operator: str) -> None:
    codes, graph, dense = layer.codes, layer.node.graph, _REPACKS[operator]
    assert graph is not None
    name = codes.name or "codes"
    packed = dense.pack(integers)
    del model.graph.initializers[name]
    value = initializer(model.graph, f"{name.removesuffix('codes')}{dense.name}", packed)
    repack = ir.node(operator, [value], {"K": layer.K, "first": _FIRST[layer.prefix]}, domain=DOMAIN)
    repack.outputs[0].name = name  # the layer is called after its codes
    graph.insert_before(layer.node, repack)
    layer.node.replace_input_with(1, repack.outputs[0])
