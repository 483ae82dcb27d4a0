"""The content of a value that is the same at every run."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

DERIVED: Final = ("Identity", "Transpose", "Cast")  # operators whose result on a constant is one


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of an initializer, of a Constant node, or of what reshapes or casts one; None for others.

    An initializer that is an input of the graph too can be overridden, and is no constant.
    """
    changes: list[ir.Node] = []
    while (node := _deriving(value)) is not None:
        changes.append(node)
        value = node.inputs[0]
    found = _given(value)
    for node in reversed(changes):
        found = found if found is None else _derived(node, found)
    return found


def _deriving(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None or value.const_value is not None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type in DERIVED else None


def _given(value: ir.Value | None) -> NDArray[Any] | None:
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    if tensor is None and (node := value.producer()) is not None and node.domain == "":
        tensor = ir.convenience.get_const_tensor(value) if node.op_type == "Constant" else None
    return None if tensor is None else tensor.numpy()


def _derived(node: ir.Node, source: NDArray[Any]) -> NDArray[Any]:
    if node.op_type == "Transpose":
        order = node.attributes.get("perm")
        return np.transpose(source, None if order is None else order.as_ints())
    if node.op_type == "Cast":
        return source.astype(ir.DataType(node.attributes["to"].as_int()).numpy())
    return source
