"""Rotary positions as one node: ONNX Runtime's RotaryEmbedding.

transformers writes x cos + (-x_2, x_1) sin over x [batch, heads, tokens, D] with halves x_1 and x_2 (arXiv
2104.09864), cos and sin [batch, 1, tokens, D] two times the same half. The node takes x as products
give it, [batch, tokens, heads * D], and a table of halves with the row of each token: here that of the call's
own tokens, as the network finds it, so that however it scales positions stays its own.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.RotaryEmbedding
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from hybridkit.exporting.constants import constant
from hybridkit.exporting.graph import Emitter, made_by
from hybridkit.exporting.lowering import MICROSOFT
from hybridkit.exporting.reshapes import same_before

_ELEMENTWISE: Final = ("Cos", "Sin", "Mul", "Cast", "Unsqueeze")  # between doubled angles and their table


@dataclass(frozen=True, slots=True)
class _Rotation:
    """One rotated value [batch, tokens, heads * D], which `node` gives.

    x is [batch, tokens, heads, D], cos and sin are [batch, 1, tokens, D].
    """

    node: ir.Node
    x: ir.Value
    cos: ir.Value
    sin: ir.Value


def fuse_rotations(model: ir.Model) -> None:
    """One node for each query and key that is rotated before attention."""
    tables: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ...]] = {}
    for node in list(model.graph):
        if node.op_type != "GroupQueryAttention":
            continue
        for value, heads in zip(node.inputs, ("num_heads", "kv_num_heads"), strict=False):
            rotation = _rotation(value)
            if rotation is None:
                continue
            e = Emitter(model, "rotary", rotation.node)
            pair = rotation.cos, rotation.sin
            if pair not in tables:
                tables[pair] = _tables(e, rotation)
            x = same_before(rotation.x, rotation.node.outputs[0].shape)
            if x is None:
                x = e.node("Reshape", rotation.x, e.constant(np.array([0, 0, -1]), "joined"))
            count = node.attributes[heads].as_int()
            e.finish(e.node("RotaryEmbedding", x, *tables[pair], domain=MICROSOFT, num_heads=count))


def _tables(e: Emitter, rotation: _Rotation) -> tuple[ir.Value, ...]:
    """The row of each token, int64 [batch, tokens], and halves of cos and sin, [batch * tokens, D / 2]."""
    half = _width(rotation.x) // 2

    def number(value: int, name: str) -> ir.Value:
        return e.constant(np.array(value), name)

    zero, one = number(0, "zero"), number(1, "one")
    shape = e.node("Shape", rotation.x, start=0, end=2)
    rows = e.node("Range", zero, e.node("ReduceProd", shape, keepdims=0), one)
    bounds = [e.constant(np.array([value]), "bound") for value in (0, half, -1)]
    flat = e.constant(np.array([-1, half]), "table")
    halves = [e.node("Slice", table, *bounds) for table in (rotation.cos, rotation.sin)]
    return e.node("Reshape", rows, shape), *(e.node("Reshape", each, flat) for each in halves)


def _rotation(value: ir.Value | None) -> _Rotation | None:
    """What gives [batch, tokens, heads * D]; None where it is no rotation."""
    joined = made_by(value, "Reshape")
    total = made_by(_swapped(_first(joined)), "Add")
    straight, turned = (made_by(each, "Mul") for each in total.inputs) if total else (None, None)
    halves = made_by(_first(turned), "Concat")
    if joined is None or straight is None or turned is None or halves is None:
        return None
    x, cos, sin = straight.inputs[0], straight.inputs[1], turned.inputs[1]
    rows = _swapped(x)
    if rows is None or cos is None or sin is None or not _is_turned(halves, x):
        return None
    return _Rotation(joined, rows, cos, sin) if _is_doubled(cos) and _is_doubled(sin) else None


def _first(node: ir.Node | None) -> ir.Value | None:
    return node.inputs[0] if node is not None else None


def _swapped(value: ir.Value | None) -> ir.Value | None:
    """What `value` is with heads and tokens in the other order."""
    node = made_by(value, "Transpose")
    swapped = node is not None and tuple(node.attributes["perm"].as_ints()) == (0, 2, 1, 3)
    return _first(node) if swapped else None


def _width(x: ir.Value) -> int:
    """D of [..., D], 0 where it is not known."""
    width = x.shape[-1] if x.shape is not None else None
    return width if isinstance(width, int) else 0


def _is_turned(halves: ir.Node, x: ir.Value | None) -> bool:
    """Whether the concatenation is (-x_2, x_1)."""
    if x is None or len(halves.inputs) != 2 or not (width := _width(x)):
        return False
    minus, first = made_by(halves.inputs[0], "Neg"), halves.inputs[1]
    second = minus.inputs[0] if minus is not None else None
    return _is_slice(first, x, 0, width // 2) and _is_slice(second, x, width // 2, width)


def _is_slice(value: ir.Value | None, x: ir.Value, start: int, end: int) -> bool:
    """Whether it is x[..., start:end]."""
    node = made_by(value, "Slice")
    if node is None or node.inputs[0] is not x:
        return False
    given = [constant(each) for each in node.inputs[1:]]
    numbers = [int(each.item()) for each in given if each is not None and each.size == 1]
    begins, ends, axis, step = numbers if len(numbers) == 4 else (-1, -1, -1, 0)
    return (begins, min(ends, _width(x)), step) == (start, end, 1) and axis in (-1, 3)


def _is_doubled(table: ir.Value | None) -> bool:
    """Whether both halves of the last axis are the same: elementwise from angles joined to themselves."""
    while (node := table.producer() if table is not None else None) is not None and node.domain == "":
        if node.op_type == "Concat":
            return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        factor = constant(node.inputs[1]) if node.op_type == "Mul" else np.ones(())
        if node.op_type not in _ELEMENTWISE or factor is None or factor.size != 1:
            return False
        table = node.inputs[0]
    return False
