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
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()
    return _derived(node)


def _derived(node: ir.Node) -> NDArray[Any] | None:
    if node.op_type not in DERIVED:
        return None
    source = constant(node.inputs[0])
    if source is None:
        return None
    if node.op_type == "Transpose":
        order = node.attributes.get("perm")
        return np.transpose(source, None if order is None else order.as_ints())
    if node.op_type == "Cast":
        return source.astype(ir.DataType(node.attributes["to"].as_int()).numpy())
    return source
