"""RMS norms in the form that ONNX Runtime knows and computes in one node, with the sum before them.

torch writes x * (1 / sqrt v). ONNX Runtime looks for x / sqrt v, which is as exact.
"""

from __future__ import annotations

import onnx_ir as ir


def divide_by_roots(model: ir.Model) -> int:
    """x / sqrt v for every x * (1 / sqrt v); returns how many there were."""
    found = 0
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) != ("", "Mul"):
            continue
        for place, factor in enumerate(node.inputs):
            root = _inverse_of_root(factor)
            if root is not None:
                x = node.inputs[1 - place]
                _replace(node, ir.node("Div", [x, root]))
                found += 1
                break
    return found


def _inverse_of_root(value: ir.Value | None) -> ir.Value | None:
    """sqrt v, where `value` is 1 / sqrt v."""
    inverse = value.producer() if value is not None else None
    if inverse is None or (inverse.domain, inverse.op_type) != ("", "Reciprocal"):
        return None
    root = inverse.inputs[0]
    producer = root.producer() if root is not None else None
    return root if producer is not None and (producer.domain, producer.op_type) == ("", "Sqrt") else None


def _replace(old: ir.Node, new: ir.Node) -> None:
    assert old.graph is not None
    ir.convenience.replace_nodes_and_values(old.graph, old, [old], [new], old.outputs, new.outputs)
