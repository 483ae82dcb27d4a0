"""RMS norms in the form that ONNX Runtime knows and computes in one node.

torch writes x * (1 / sqrt v). ONNX Runtime looks for x / sqrt v, which is as exact.
"""

from __future__ import annotations

import onnx_ir as ir

from hybridkit.exporting.graph import Emitter, made_by


def divide_by_roots(model: ir.Model) -> None:
    """x / sqrt v for every x * (1 / sqrt v)."""
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) != ("", "Mul"):
            continue
        for factor, x in (node.inputs, reversed(node.inputs)):
            inverse = made_by(factor, "Reciprocal")
            if inverse is not None and made_by(inverse.inputs[0], "Sqrt") is not None:
                e = Emitter(model, "", node)
                e.finish(e.node("Div", x, inverse.inputs[0]))
                break
