"""Reading and replacing the `hybridkit` nodes of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybridkit.exporting.functions import DENSE, DOMAIN, GATHER, ROW_MAJOR, STORAGES
from hybridkit.packing.codecs import codec

_CONV_ATTRIBUTES: Final = ("kernel_shape", "strides", "pads", "dilations", "group")
_KINDS: Final = ("MatMul", "Conv", "Embedding")
_CODECS: Final = {prefix: storage.codec for prefix, storage in STORAGES.items()} | DENSE


@dataclass(frozen=True, slots=True)
class PackedNode:
    """A node that stands for one packed layer, as translation writes it.

    prefix is Ternary, Binary, NBit1, NBit2, NBit4, NBit8 or, in a file, Sparse34 or Base3; kind MatMul,
    Conv or Embedding; int8 says whether activations are quantised. `group_size` 0 means one scale per row.
    """

    node: ir.Node
    prefix: str
    kind: str
    int8: bool
    K: int
    N: int
    group_size: int

    @property
    def name(self) -> str:
        """Of the layer in the network."""
        return (self.codes.name or "").removesuffix("codes").removesuffix(".")

    @property
    def layout(self) -> int:
        """The order of the codes; row-major where the node does not say."""
        given = self.node.attributes.get("layout")
        return ROW_MAJOR if given is None else given.as_int()

    @property
    def has_layout(self) -> bool:
        """Whether the node is an operator of a file, which says how its codes are ordered."""
        return "layout" in self.node.attributes

    @property
    def group(self) -> int:
        """Groups of a convolution."""
        return self.node.attributes["group"].as_int() if self.kind == "Conv" else 1

    @property
    def positions(self) -> int:
        """Positions of a convolution's kernel."""
        return math.prod(self.node.attributes["kernel_shape"].as_ints()) if self.kind == "Conv" else 1

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return STORAGES[self.prefix].bits

    @property
    def x(self) -> ir.Value:
        """The activations, or the indices of an embedding."""
        return _given(self.node.inputs[0])

    @property
    def codes(self) -> ir.Value:
        """The packed codes, uint8; row-major [N, bytes] while a graph is rewritten."""
        return _given(self.node.inputs[1])

    @property
    def scale(self) -> ir.Value:
        """float32 [N] or [N, groups]."""
        return _given(self.node.inputs[2])

    @property
    def bias(self) -> ir.Value:
        """float32 [N]; embeddings have none."""
        return _given(self.node.inputs[3])

    @property
    def offset(self) -> ir.Value | None:
        """As scale; None where there is none. The last input of an n-bit layer."""
        place = 3 if self.kind == "Embedding" else 4
        return self.node.inputs[place] if len(self.node.inputs) > place else None

    @property
    def on_output(self) -> bool:
        """Whether the scale can stand on a product's output: one per row, and no offset."""
        return self.group_size == 0 and self.offset is None

    @property
    def convolution(self) -> dict[str, Any]:
        """The attributes of ONNX's Conv."""
        return {name: self.node.attributes[name].value for name in _CONV_ATTRIBUTES}

    def integers(self) -> NDArray[np.int8]:
        """The codes, unpacked: int8 [N, K]."""
        return codec(_CODECS[self.prefix]).unpack(array_of(self.codes), self.K)

    def dequantize(self, order: Literal["C", "F"] = "C") -> NDArray[np.float32]:
        """The weights [N, K], in memory in this order."""
        weight = self.integers().astype(np.float32, order=order)
        weight *= self._per_weight(array_of(self.scale))
        if self.offset is not None:
            weight += self._per_weight(array_of(self.offset))
        return weight

    def _per_weight(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, 1], or [N, K] where there are groups."""
        if not self.group_size:
            return numbers[:, None]
        return np.repeat(numbers, self.group_size, axis=1)[:, : self.K]


def packed_nodes(model: ir.Model) -> Iterator[PackedNode]:
    """The packed layers of a graph, in order."""
    for node in list(model.graph.all_nodes()):
        if node.domain == DOMAIN and any(kind in node.op_type for kind in _KINDS):
            yield parse(node)


def gathers(node: ir.Node) -> bool:
    """Whether a node gathers rows of the codes of products."""
    return node.domain == DOMAIN and node.op_type.endswith(GATHER)


def parse(node: ir.Node) -> PackedNode:
    """The packed layer that a `hybridkit` node stands for."""

    def number(name: str) -> int:
        return node.attributes[name].as_int() if name in node.attributes else 0

    kind = next(kind for kind in _KINDS if kind in node.op_type)
    prefix, _, mode = node.op_type.partition(kind)
    return PackedNode(
        node,
        f"NBit{number('bits')}" if prefix == "NBit" else prefix,
        kind,
        mode == "Int8",
        number("K"),
        number("N"),
        number("group_size"),
    )


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None, "packed operators have no optional inputs"
    return value


def array_of(value: ir.Value) -> NDArray[Any]:
    """The content of an initializer."""
    assert value.const_value is not None, f"{value.name} is no initializer"
    return value.const_value.numpy()


def made_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that gives `value`, where it is this operator of ONNX's own."""
    node = value.producer() if value is not None else None
    return node if node is not None and (node.domain, node.op_type) == ("", operator) else None


def initializer(graph: ir.Graph, name: str, content: NDArray[Any]) -> ir.Value:
    """A new one of a name that the graph does not have."""
    tensor = ir.tensor(content, name=name)
    shape = ir.Shape(content.shape)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


class Emitter:
    """Writes the nodes that take the place of one node."""

    def __init__(self, model: ir.Model, name: str, replaced: ir.Node) -> None:
        """New initializers are called after `name`."""
        self._graph = model.graph
        self._stem = name
        self._replaced = replaced
        self._tape = ir.tape.Tape()

    def node(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self._tape.op(op_type, inputs, attributes, domain=domain)

    def constant(self, array: NDArray[Any] | np.generic, name: str) -> ir.Value:
        """An initializer; `name` says what it is, and is made unique."""
        base = unique = f"{self._stem}.{name}" if self._stem else name
        count = 1
        while unique in self._graph.initializers:
            count += 1
            unique = f"{base}.{count}"
        return initializer(self._graph, unique, np.asarray(array))

    def finish(self, result: ir.Value) -> None:
        """Put the written nodes in place of the old one."""
        old = self._replaced
        assert old.graph is not None
        ir.convenience.replace_nodes_and_values(
            old.graph, old, [old], list(self._tape.nodes), old.outputs, [result]
        )


Rule = Callable[[Emitter, PackedNode], ir.Value]


def rewrite(model: ir.Model, rules: Mapping[tuple[str, str], Rule]) -> None:
    """Replace packed layers by what the rule for their prefix and kind writes; others stay."""
    for layer in packed_nodes(model):
        rule = rules.get((layer.prefix, layer.kind))
        if rule is not None:
            emitter = Emitter(model, layer.name, layer.node)
            emitter.finish(rule(emitter, layer))
