"""From a rewritten graph to a model that a file may hold."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes

from hybridkit.exporting.functions import DOMAIN, DOMAIN_VERSION, function
from hybridkit.exporting.layout import make_tiled
from hybridkit.exporting.lowering import MICROSOFT
from hybridkit.exporting.scales import halve_scales


def assemble(model: ir.Model, opset: int, *, inline: bool = False) -> None:
    """Bodies for our operators that are used, every tensor once, codes as tiles, nothing that is unused.

    `inline` puts the bodies in the place of our operators.
    """
    used = sorted({n.op_type for n in model.graph.all_nodes() if n.domain == DOMAIN})
    for operator in used:
        body = ir.serde.deserialize_function(function(operator, opset))
        model.functions[body.identifier()] = body
    model.graph.opset_imports[DOMAIN] = DOMAIN_VERSION
    model.graph.opset_imports.setdefault(MICROSOFT, 1)
    if inline:
        passes.InlinePass()(model)
    _make_contiguous(model)
    passes.DeduplicateHashedInitializersPass()(model)
    if not inline:
        make_tiled(model)
        halve_scales(model)
    passes.RemoveUnusedNodesPass()(model)
    _drop_unused_weights(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.NameFixPass()(model)  # graphs inside the graph may have given a new value's name already


def _drop_unused_weights(model: ir.Model) -> None:
    """In the graphs inside the graph, where the pass before leaves them."""
    for graph in model.graph.subgraphs():
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]


def tidy(model: ir.Model) -> None:
    """Drop torch's notes, and the types of values inside the graph, which can be inferred."""
    passes.ClearMetadataAndDocStringPass()(model)
    outputs = set(model.graph.outputs)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in outputs:
                value.metadata_props.clear()
                value.type = None
                value.shape = None


def _make_contiguous(model: ir.Model) -> None:
    """Copy weights that torch hands over as views (folded transposes): the next pass cannot hash them."""
    for value in model.graph.initializers.values():
        if value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor):
            array = value.const_value.numpy()
            if not array.flags.c_contiguous:
                value.const_value = ir.tensor(array.copy(order="C"), name=value.name)
