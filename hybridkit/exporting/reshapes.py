"""Reshapes that only lead back to a shape that a value had before."""

from __future__ import annotations

import onnx_ir as ir

from hybridkit.exporting.graph import made_by


def drop_round_trips(model: ir.Model) -> int:
    """Read what a reshape leads back to in place of its output; returns how many there were."""
    found = 0
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) != ("", "Reshape"):
            continue
        output = node.outputs[0]
        earlier = same_before(node.inputs[0], output.shape)
        if earlier is not None and not output.is_graph_output():
            output.replace_all_uses_with(earlier)
            found += 1
    return found


def same_before(value: ir.Value | None, shape: ir.Shape | None) -> ir.Value | None:
    """`value`, or what it was before it was reshaped, of that shape: then with the same content."""
    while shape is not None and value is not None:
        if value.shape is not None and _same(value.shape, shape):
            return value
        node = made_by(value, "Reshape")
        value = node.inputs[0] if node is not None else None
    return None


def _same(first: ir.Shape, second: ir.Shape) -> bool:
    """Whether every dimension is known to be the same."""
    known = all(isinstance(size, int) or size.value is not None for size in (*first, *second))
    return known and list(first) == list(second)
