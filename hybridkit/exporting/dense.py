"""Ternary codes of a file in fewer than two bits, repacked while the file loads.

In base 3 five are a byte, 1.6 bits each; 3:4-sparse ones take 1.25. A node in front of the product makes
row-major two-bit codes of them, out of constants, so that a runtime does it once.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from hybridkit.exporting.functions import BASE3_REPACK, DOMAIN, ROW_MAJOR, SPARSE34_REPACK
from hybridkit.exporting.graph import PackedNode, array_of, initializer, packed_nodes
from hybridkit.packing.codecs import SPARSE, Codec, codec

_FIRST: Final = {"Ternary": 0, "NBit2": 1}  # the digit of -1, by the prefix of the operators that read it
_KINDS: Final = ("MatMul", "Conv")
_REPACKS: Final[dict[str, Codec]] = {BASE3_REPACK: codec("base3"), SPARSE34_REPACK: SPARSE}


def store_densely(model: ir.Model) -> None:
    """Rewrite the codes of ternary products, which are row-major, where nothing else reads them."""
    for layer in list(packed_nodes(model)):
        if layer.prefix not in _FIRST or layer.kind not in _KINDS or not layer.has_layout:
            continue
        codes = layer.codes
        if codes.const_value is None or len(codes.uses()) != 1 or layer.layout != ROW_MAJOR:
            continue
        integers = layer.integers()
        if SPARSE.holds(integers):
            _rewrite(model, layer, SPARSE34_REPACK)
        elif integers.min(initial=0) >= -1 and integers.max(initial=0) <= 1:
            _rewrite(model, layer, BASE3_REPACK)


def restore_two_bits(model: ir.Model) -> None:
    """The inverse: two-bit codes as initializers."""
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


def _rewrite(model: ir.Model, layer: PackedNode, operator: str) -> None:
    codes, graph, dense = layer.codes, layer.node.graph, _REPACKS[operator]
    assert graph is not None
    name = codes.name or "codes"
    packed = dense.pack(layer.integers())
    del model.graph.initializers[name]
    value = initializer(model.graph, f"{name.removesuffix('codes')}{dense.name}", packed)
    repack = ir.node(operator, [value], {"K": layer.K, "first": _FIRST[layer.prefix]}, domain=DOMAIN)
    repack.outputs[0].name = name  # the layer is called after its codes
    graph.insert_before(layer.node, repack)
    layer.node.replace_input_with(1, repack.outputs[0])
