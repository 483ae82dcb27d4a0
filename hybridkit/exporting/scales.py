"""Scales of n-bit layers in float16 where that holds every one of them exactly: half their bytes.

Our n-bit products read them as they are. What a network does with them otherwise, such as gathering those of
rows of an embedding, is followed or preceded by a Cast.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from hybridkit.exporting.functions import DOMAIN
from hybridkit.exporting.graph import PackedNode, array_of, packed_nodes

_SCALE: Final = 2  # its place among the inputs of a product


def halve_scales(model: ir.Model) -> None:
    """Rewrite the scales of n-bit products, if float16 holds them exactly."""
    for scale in dict.fromkeys(layer.scale for layer in _nbit_products(model)):
        if scale.const_value is None or scale.dtype != ir.DataType.FLOAT:
            continue
        wide = array_of(scale)
        with np.errstate(over="ignore"):
            half = wide.astype(np.float16)
        if np.array_equal(half.astype(np.float32), wide):
            scale.const_value, scale.dtype = ir.tensor(half, name=scale.name), ir.DataType.FLOAT16
            _widen_elsewhere(scale)


def widen_scales(model: ir.Model) -> None:
    """The inverse: scales of all products in float32."""
    for layer in _nbit_products(model):
        scale = layer.scale
        if scale.const_value is not None and scale.dtype == ir.DataType.FLOAT16:
            scale.const_value = ir.tensor(array_of(scale).astype(np.float32), name=scale.name)
            scale.dtype = ir.DataType.FLOAT


def _nbit_products(model: ir.Model) -> list[PackedNode]:
    layers = packed_nodes(model)
    return [p for p in layers if p.prefix.startswith("NBit") and p.kind == "MatMul" and p.has_layout]


def _widen_elsewhere(scale: ir.Value) -> None:
    for node, place in scale.uses():
        if node.domain == DOMAIN and place == _SCALE:
            continue
        assert node.graph is not None
        if node.op_type == "Gather":  # rows of it are fewer
            found = node.outputs[0]
            cast = ir.node("Cast", [found], {"to": ir.DataType.FLOAT})
            node.graph.insert_after(node, cast)
            for user, at in found.uses():
                if user is not cast:
                    user.replace_input_with(at, cast.outputs[0])
            found.type = None
        else:
            cast = ir.node("Cast", [scale], {"to": ir.DataType.FLOAT})
            node.graph.insert_before(node, cast)
            node.replace_input_with(place, cast.outputs[0])
