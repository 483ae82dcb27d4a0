"""Exporters that write ONNX: our packed operators with their portable bodies, or a plain fp32 twin."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from torch import nn

from hybridkit import __version__
from hybridkit.calls import evaluating
from hybridkit.errors import FileError
from hybridkit.exporting import files, lowering, verify
from hybridkit.exporting.assembly import assemble, tidy
from hybridkit.exporting.dense import store_densely, use_sparse_products
from hybridkit.exporting.folding import fold_batch_normalization
from hybridkit.exporting.gelu import reorder_gelu
from hybridkit.exporting.graph import PackedNode, packed_nodes
from hybridkit.exporting.half import in_half
from hybridkit.exporting.norms import divide_by_roots
from hybridkit.exporting.pooling import check_pooling, pooling
from hybridkit.exporting.precision import without_bfloat16
from hybridkit.exporting.protocol import ExportReport, ExportRequest
from hybridkit.exporting.reshapes import drop_round_trips
from hybridkit.exporting.translation import translate
from hybridkit.memory import give_back_memory
from hybridkit.options import option
from hybridkit.packing.model import PackedModel
from hybridkit.quant.layers import qat_layers
from hybridkit.runtime.modules import load_packed, tile_layers

Lower = Callable[[ir.Model], None]
View = Callable[[nn.Module], AbstractContextManager[object]]
SUFFIX: Final = ".onnx"
_STAND_IN: Final = 2**16  # bytes of a weight that is not read to find its size


class OnnxExporter:
    """Packed operators of the domain `hybridkit`, each with a body that stock runtimes inline."""

    suffixes = (SUFFIX,)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of the exporter."""

        dense: bool = option(
            False,
            "ternary codes in 1.6 bits, 3:4-sparse ones in 1.25: a smaller file; large layers stay so",
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def export(
        self, module: nn.Module, packed: PackedModel | None, path: Path, request: ExportRequest
    ) -> ExportReport:
        """Write the file; see Exporter."""
        return write_onnx(module, packed, path, request, target="onnx", lower=self.lower)

    def lower(self, model: ir.Model) -> None:
        """Rewrite a graph whose codes are row-major."""
        lowering.portable(model)
        use_sparse_products(model)
        if self.options.dense:
            store_densely(model)


class Fp32Exporter:
    """The same network with plain float32 weights and activations, to compare with."""

    suffixes = (".fp32.onnx",)

    def export(
        self, module: nn.Module, packed: PackedModel | None, path: Path, request: ExportRequest
    ) -> ExportReport:
        """Write the file; see Exporter."""
        return write_onnx(
            module,
            packed,
            path,
            request,
            target="fp32",
            lower=lowering.full_precision,
            approximate=_has_int8(packed),
        )


def write_onnx(
    module: nn.Module,
    packed: PackedModel | None,
    path: Path,
    request: ExportRequest,
    *,
    target: str,
    lower: Lower,
    approximate: bool = False,
    inline: bool = False,
    tracing: View = nullcontext,
    comparing: View = nullcontext,
    operators: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType({}),
) -> ExportReport:
    """Translate, fold, lower, assemble, save, verify; what all ONNX exporters share.

    `lower` rewrites packed layers as what the target's files may hold. `inline` leaves no operator of ours
    in the file. `approximate` says that the file's arithmetic differs from the network's by design.
    `tracing` and `comparing` are contexts in which a network is called to be traced and to be compared with
    the file; `operators` are torch's, beside ours, with what writes a node for each.
    Raises UsageError, HybridkitError, FileError or GateError; `path` is untouched then.
    """
    if not path.parent.is_dir():
        raise FileError(f"cannot write {path}: there is no folder {path.parent}")
    if request.pool:
        check_pooling(request.pool, request.example_inputs)
        tracing = comparing = partial(pooling, mode=request.pool)
    module, request, cast = without_bfloat16(module, request)
    with _evaluating(module) as network:
        runnable = load_packed(network, packed, tiled=False) if packed is not None else network
        with tracing(runnable), in_half(runnable) if request.half else nullcontext():
            graph = translate(
                runnable,
                request.example_inputs,
                request.input_names,
                request.dynamic_axes,
                request.opset,
                operators,
            )
        fold_batch_normalization(graph)
        reorder_gelu(graph)
        divide_by_roots(graph)
        drop_round_trips(graph)
        fp32_bytes = _fp32_bytes(graph)
        lower(graph)
        products = {layer.name: layer for layer in packed_nodes(graph)}
        assemble(graph, request.opset, inline=inline)
        tidy(graph)
        _describe(graph, packed, products, request.metadata, target)
        loose = approximate or request.half
        gate: verify.Gate = "approximate" if loose else "int8" if _has_int8(packed) else "float"
        with files.staged(path) as staged:
            files.save(graph, staged)
            files.check_form(staged)
            _release(graph)
            verification = None
            if request.validation is not None:
                reference = network if qat_layers(network) else tile_layers(runnable)
                rounding = runnable if gate == "int8" else None
                with comparing(reference), nullcontext() if reference is runnable else comparing(runnable):
                    verification = verify.compare(staged, reference, request.validation, rounding)
                verify.check_gate(verification, gate, path)
    return ExportReport(
        path=path,
        target=target,
        opset=request.opset,
        file_bytes=files.written_bytes(path),
        fp32_bytes=fp32_bytes,
        bits_per_weight=packed.sizes().bits_per_weight if packed is not None and packed.layers else None,
        verification=verification,
        cast=cast,
    )


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """`module` on the CPU in evaluation mode; the caller's module keeps its device and its mode."""
    if any(tensor.device.type != "cpu" for tensor in module.state_dict().values()):
        module = copy.deepcopy(module).cpu()
    with evaluating(module):
        yield module


def _release(graph: ir.Model) -> None:
    """Free the weights of a graph that is written, as verification needs the memory.

    They are taken out one by one: onnxscript's rewriting rules keep hold of the last graph that they saw.
    """
    for value in graph.graph.initializers.values():
        value.const_value = None
    gc.collect()  # what torch traced goes in circles
    give_back_memory()


def _has_int8(packed: PackedModel | None) -> bool:
    return packed is not None and any(layer.activations == "int8" for layer in packed.layers.values())


def _fp32_bytes(graph: ir.Model) -> int:
    """Size of the file that the same network makes with plain float32 weights, from their shapes.

    Weights above _STAND_IN bytes are not read: a small array takes the place of each array. So, of weights
    that are not tied but equal, only small ones are counted once.
    """
    twin = graph.clone()  # shares the weights
    lowering.full_precision(twin, lambda layer: np.broadcast_to(np.float32(0), (layer.N, layer.K)))
    values = twin.graph.initializers.values()
    large = {id(t): t for v in values if (t := v.const_value) is not None and t.nbytes > _STAND_IN}
    stand_ins = {key: ir.tensor(np.array(number, np.complex128)) for number, key in enumerate(large)}
    for value in values:
        value.const_value = stand_ins.get(id(value.const_value), value.const_value)
    assemble(twin, twin.graph.opset_imports[""])
    tidy(twin)
    sizes = {id(stand_in): large[key].nbytes for key, stand_in in stand_ins.items()}
    return files.model_bytes(twin) + sum(sizes.get(id(v.const_value), 0) for v in values)


def _describe(
    model: ir.Model,
    packed: PackedModel | None,
    products: Mapping[str, PackedNode],
    metadata: Mapping[str, Any],
    target: str,
) -> None:
    """Write down what the file holds; the `layout` of those of `products` that the graph still has."""
    model.producer_name, model.producer_version = "hybridkit", __version__
    layouts = {name: layer.layout for name, layer in products.items() if layer.node.graph is not None}
    layers = {
        name: {
            "kind": layer.kind,
            "shape": list(layer.shape),
            "bits": round(layer.bits, 4),
            "quantizer": layer.quantizer,
            "activations": layer.activations,
        }
        | ({"group_size": layer.group_size} if layer.group_size else {})
        | ({"layout": layouts[name]} if name in layouts else {})
        for name, layer in (packed.layers.items() if packed is not None else ())
    }
    facts = {"version": __version__, "target": target, "layers": layers, **metadata}
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        model.metadata_props[f"hybridkit.{key}"] = text
