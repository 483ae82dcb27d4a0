"""The layers of an ONNX graph: MatMul, Gemm and Conv with a constant weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybridkit.exporting.constants import DERIVED, constant

MOST_COLUMNS: Final = 1 << 22  # to which the native kernels' sums are exact
_FLOATS: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_PRODUCTS: Final = ("MatMul", "Gemm", "Conv")
_MANY: Final = 1024  # weights of another operator that are worth a word


@dataclass(frozen=True, slots=True)
class Product:
    """A layer: y = x . weight^T + bias, or a convolution (then `geometry` has Conv's attributes).

    weight: the array as the node reads it. bias: float32 [N] or None. last: the node whose output is y, the
    product itself or an Add behind it. beta: of Gemm, where its third input is no constant row; else 0.
    """

    name: str
    node: ir.Node
    last: ir.Node
    weight: NDArray[Any]
    bias: NDArray[np.float32] | None
    beta: float = 0.0
    geometry: Mapping[str, Any] | None = None

    @property
    def op(self) -> str:
        """MatMul, Gemm or Conv."""
        return self.node.op_type

    @property
    def x(self) -> ir.Value:
        """The activations."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight in the file."""
        return self.weight.shape

    def matrix(self) -> NDArray[np.float32]:
        """The weight as float32 [N, K], Gemm's alpha included."""
        weight = self.weight.astype(np.float32)
        if self.geometry:
            return weight.reshape(len(weight), -1)
        alpha = self.node.attributes["alpha"].as_float() if "alpha" in self.node.attributes else 1.0
        matrix = weight if _flag(self.node, "transB") else weight.T
        return np.ascontiguousarray(matrix * np.float32(alpha))


@dataclass(frozen=True, slots=True)
class Unfit:
    """A layer that cannot be rewritten, and why."""

    name: str
    node: ir.Node
    weight: NDArray[Any]
    reason: str


def find(model: ir.Model) -> list[Product | Unfit]:
    """Every layer of the graph and of the graphs inside it, in order, with a name of its own.

    Also those whose operator is none that can be rewritten, if their weight is large enough to matter.
    """
    return list(_named(node for node in model.graph.all_nodes() if node.domain == ""))


def _named(nodes: Iterator[ir.Node]) -> Iterator[Product | Unfit]:
    taken: dict[str, int] = {}
    for node in nodes:
        weight, reason = _layer(node) if node.op_type in _PRODUCTS else _other(node)
        if weight is None:
            continue
        name = node.name or node.outputs[0].name or node.op_type
        taken[name] = taken.get(name, 0) + 1
        name = name if taken[name] == 1 else f"{name}.{taken[name]}"
        yield Unfit(name, node, weight, reason) if reason else _product(name, node, weight)


def _layer(node: ir.Node) -> tuple[NDArray[Any] | None, str]:
    """The weight of a product, and why it cannot be rewritten; None for two activations or two constants."""
    left, right = (constant(value) for value in node.inputs[:2])
    if (left is None) == (right is None) or (node.op_type == "Conv" and right is None):
        return None, ""
    weight = left if right is None else right
    assert weight is not None
    return weight, _unfit(node, weight, is_right=right is not None)


def _other(node: ir.Node) -> tuple[NDArray[Any] | None, str]:
    """The first large weight of an operator that is no product and does not merely hand it on."""
    for value in node.inputs if node.op_type not in DERIVED else ():
        if value is None or value.const_value is None or value.dtype not in _FLOATS:
            continue
        if value.const_value.size >= _MANY and len(value.const_value.shape) > 1:
            return constant(value), f"{node.op_type} is not quantised"
    return None, ""


def _unfit(node: ir.Node, weight: NDArray[Any], *, is_right: bool) -> str:
    """Why a layer cannot be rewritten; empty if it can."""
    readers = _readers(node.inputs[1]) - set(_PRODUCTS)
    if not is_right:
        return "its weight is the left factor"
    if ir.DataType.from_numpy(weight.dtype) not in _FLOATS:
        return f"{weight.dtype} weights"
    if not np.isfinite(weight).all():
        return "its weight holds infinities or NaN"
    if readers:
        return f"shares its weight with {', '.join(sorted(readers))}"
    if weight.size == 0 or max(len(weight), weight.size // len(weight)) > MOST_COLUMNS:
        return "an empty or too wide weight"
    if node.op_type == "Conv":
        return _unfit_convolution(node, weight)
    if weight.ndim != 2:
        return f"a weight with {weight.ndim} dimensions"
    return "a transposed input" if _flag(node, "transA") else ""


def _unfit_convolution(node: ir.Node, weight: NDArray[Any]) -> str:
    axes = weight.ndim - 2
    if not 1 <= axes <= 3:
        return f"{axes} spatial axes"
    group = _flag(node, "group", 1)
    if group < 1 or len(weight) % group:  # found when it runs, and this one may run on no generated input
        return f"{group} groups of {len(weight)} channels"
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None:
        return "its bias is no constant"
    if _text(node, "auto_pad", "NOTSET").startswith("SAME") and any(
        s != 1 for s in _numbers(node, "strides", [1])
    ):
        return "padding that depends on the size of the input"
    return ""


def _product(name: str, node: ir.Node, weight: NDArray[Any]) -> Product:
    if node.op_type == "Conv":
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        geometry = _geometry(node, weight.shape[2:])
        return Product(
            name, node, node, weight, None if bias is None else _row(bias, len(weight)), geometry=geometry
        )
    rows = weight.shape[0 if _flag(node, "transB") else 1]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
        row = _row(constant(node.inputs[2]), rows)
        if row is None:
            return Product(name, node, node, weight, None, beta=beta)
        return Product(name, node, node, weight, row * np.float32(beta))
    add, bias = _added(node, rows)
    return Product(name, node, add or node, weight, bias)


def _added(node: ir.Node, rows: int) -> tuple[ir.Node | None, NDArray[np.float32] | None]:
    """The Add of a constant row that is the only reader of a product, and that row."""
    output = node.outputs[0]
    uses = tuple(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.graph is not node.graph:
        return None, None
    add = uses[0].node
    if add.op_type != "Add" or add.domain != "":
        return None, None
    other = constant(add.inputs[1 - uses[0].idx])
    row = _row(other, rows) if other is not None and other.ndim <= 1 else None  # more would add dimensions
    return (None, None) if row is None else (add, row)


def _row(array: NDArray[Any] | None, rows: int) -> NDArray[np.float32] | None:
    """What is added to each of `rows` output channels, float32 [rows]; None if it is no constant row."""
    if array is None or array.size not in (1, rows) or (array.ndim and array.shape[-1] != array.size):
        return None
    return np.broadcast_to(array.astype(np.float32).reshape(-1), (rows,)).copy()


def _geometry(node: ir.Node, kernel: Sequence[int]) -> dict[str, Any]:
    ones = [1] * len(kernel)
    dilations = _numbers(node, "dilations", ones)
    pads = _numbers(node, "pads", [0] * (2 * len(kernel)))
    automatic = _text(node, "auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = less + more if automatic == "SAME_UPPER" else more + less
    return {
        "kernel_shape": list(kernel),
        "strides": _numbers(node, "strides", ones),
        "pads": pads if automatic != "VALID" else [0] * (2 * len(kernel)),
        "dilations": dilations,
        "group": _flag(node, "group", 1),
    }


def _readers(value: ir.Value | None) -> set[str]:
    """The operators that read a weight, or what it is derived from, in any form."""
    assert value is not None
    node = value.producer()
    while node is not None and node.op_type in DERIVED and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    found, waiting = set(), [value]
    while waiting:
        for reader, _ in waiting.pop().uses():
            if reader.op_type in DERIVED and reader.domain == "":
                waiting.append(reader.outputs[0])
            else:
                found.add(reader.op_type)
    return found


def _flag(node: ir.Node, name: str, default: int = 0) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _numbers(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else list(default)


def _text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default
