"""BatchNormalization after a packed layer becomes part of the layer's scale and bias.

    gamma * (s * acc + b - mean) / sqrt(var + eps) + beta  =  (f * s) * acc + (f * (b - mean) + beta)

with f = gamma / sqrt(var + eps), computed in float64 and rounded once. An offset is multiplied as the scale.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hybridkit.exporting.constants import constant
from hybridkit.exporting.graph import Emitter, PackedNode, array_of, packed_nodes


def fold_batch_normalization(model: ir.Model) -> int:
    """Fold what can be folded and return how many nodes went away.

    A node stays where the packed layer has other readers, or where its channels are not the layer's
    outputs (a matrix product with more than two dimensions).
    """
    folded = 0
    for layer in packed_nodes(model):
        follower = _follower(layer)
        if follower is not None:
            _fold(model, layer, follower)
            folded += 1
    return folded


def _follower(layer: PackedNode) -> ir.Node | None:
    output = layer.node.outputs[0]
    uses = tuple(output.uses())
    if layer.kind == "Embedding" or len(uses) != 1 or output.is_graph_output():
        return None
    node, position = uses[0].node, uses[0].idx
    if node.op_type != "BatchNormalization" or node.domain != "" or position != 0:
        return None
    if layer.kind == "MatMul" and (output.shape is None or output.shape.rank() != 2):
        return None
    return node if all(constant(value) is not None for value in node.inputs[1:]) else None


def _fold(model: ir.Model, layer: PackedNode, follower: ir.Node) -> None:
    parameters = (constant(value) for value in follower.inputs[1:])
    gamma, beta, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    epsilon = follower.attributes["epsilon"].as_float() if "epsilon" in follower.attributes else 1e-5
    factor = gamma / np.sqrt(variance + epsilon)
    scale, bias = array_of(layer.scale).astype(np.float64), array_of(layer.bias).astype(np.float64)
    e = Emitter(model, layer.name, follower)
    spread = factor.reshape(-1, *[1] * (scale.ndim - 1))
    layer.node.replace_input_with(2, e.constant((scale * spread).astype(np.float32), "scale"))
    if layer.offset is not None:
        offset = array_of(layer.offset) * spread
        layer.node.replace_input_with(4, e.constant(offset.astype(np.float32), "offset"))
    layer.node.replace_input_with(3, e.constant((factor * (bias - mean) + beta).astype(np.float32), "bias"))
    e.finish(layer.node.outputs[0])
