"""GELU in the order of operations that ONNX Runtime knows and computes in one pass over the activations.

torch writes x * (0.5 * (1 + erf(x / sqrt 2))). ONNX Runtime looks for (x * (1 + erf(x / sqrt 2))) * 0.5,
which is the same number, as halving is exact.
"""

from __future__ import annotations

import onnx_ir as ir

from hybridkit.exporting.constants import constant


def reorder_gelu(model: ir.Model) -> int:
    """Swap x and the half of every GELU in torch's order; returns how many there were."""
    found = 0
    for erf in model.graph.all_nodes():
        if (erf.domain, erf.op_type) != ("", "Erf"):
            continue
        places = [erf.outputs[0]]
        for operator in ("Add", "Mul", "Mul"):
            node = _only_reader(places[-1], operator)
            if node is None:
                break
            places.append(node.outputs[0])
        else:
            found += _swap(places)
    return found


def _swap(places: list[ir.Value]) -> bool:
    """`places`: the outputs of erf, of the sum, of the halving and of the last product."""
    _, total, halved, product = places
    halving, last = halved.producer(), product.producer()
    divided = places[0].producer().inputs[0].producer()  # type: ignore[union-attr]
    assert halving is not None
    assert last is not None
    half, x = _other(halving, total), _other(last, halved)
    value = constant(halving.inputs[half])
    if value is None or value.size != 1 or value.item() != 0.5:
        return False
    if divided is None or divided.inputs[0] is not last.inputs[x]:
        return False
    constant_half, activations = halving.inputs[half], last.inputs[x]
    halving.replace_input_with(half, activations)
    last.replace_input_with(x, constant_half)
    return True


def _only_reader(value: ir.Value, operator: str) -> ir.Node | None:
    readers = [use.node for use in value.uses()]
    if len(readers) != 1 or (readers[0].domain, readers[0].op_type) != ("", operator):
        return None
    return None if value.is_graph_output() else readers[0]


def _other(node: ir.Node, value: ir.Value) -> int:
    """Which input of a product of two is not `value`."""
    return 1 if node.inputs[0] is value else 0
