"""How much of a layer is lost: in its weight, or in its output on given inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from hybridkit.exporting import files
from hybridkit.exporting.onnx_quantize.comparison import SILENT
from hybridkit.exporting.onnx_quantize.products import Product
from hybridkit.runtime.session import session

Floats = NDArray[np.float32]
Feed = Mapping[str, NDArray[Any]]

MOST_ROWS: Final = 512  # of a matrix product's activations that an error is measured on
MOST_SAMPLES: Final = 8  # of a convolution's
_AT_ONCE: Final = 16  # layers whose activations are in memory before they are cut to that


def relative_error(wanted: Floats, found: Floats) -> float:
    """||wanted - found|| / ||wanted||, in Frobenius norms; the numerator alone where wanted is zero."""
    error = float(np.linalg.norm((wanted - found).ravel()))
    return error / (float(np.linalg.norm(wanted.ravel())) or 1.0)


def output_error(product: Product, x: Floats, dequantized: Floats, int8: bool) -> float:
    """The relative error of the layer's output on `x` with the weight `dequantized` [N, K], bias aside.

    int8: activations are quantised, per row or sample.
    """
    wanted = _multiply(product, x, product.matrix())
    if int8:
        axes = tuple(range(1, x.ndim)) if product.geometry else (-1,)
        scale = np.maximum(np.abs(x).max(axis=axes, keepdims=True), np.float32(1e-5)) / np.float32(127)
        x = np.rint(x / scale) * scale
    return relative_error(wanted, _multiply(product, x, dequantized))


def activations(model: ir.Model, products: Sequence[Product], feed: Feed) -> dict[str, Floats]:
    """What reaches each layer when the model runs on `feed`, by the layer's name.

    At most MOST_ROWS rows or MOST_SAMPLES samples. Layers in graphs inside the graph are left out.
    """
    watched = {p.name: p.x.name or "" for p in products if p.node.graph is model.graph}
    inside = sorted({name for name in watched.values() if name not in feed})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        files.save(_with_outputs(model, inside), path)
        runner = session(path, native=False, log_severity_level=SILENT)
        shown = {name: _cut(array, products, watched, name) for name, array in feed.items()}
        for start in range(0, len(inside), _AT_ONCE):
            names = inside[start : start + _AT_ONCE]
            for name, array in zip(names, runner.run(names, dict(feed)), strict=True):
                shown[name] = _cut(array, products, watched, name)
    return {layer: shown[name] for layer, name in watched.items()}


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    clone = model.clone()
    known = {value.name for value in clone.graph.outputs}
    values = {v.name: v for node in clone.graph for v in node.outputs}
    clone.graph.outputs.extend(values[name] for name in names if name not in known)
    return clone


def _cut(array: NDArray[Any], products: Sequence[Product], watched: Mapping[str, str], name: str) -> Floats:
    convolved = any(p.geometry for p in products if watched.get(p.name) == name)
    if not convolved and array.ndim:
        array = array.reshape(-1, array.shape[-1])
    most = MOST_SAMPLES if convolved else MOST_ROWS
    step = -(-len(array) // most) or 1
    return array[::step].astype(np.float32)


def _multiply(product: Product, x: Floats, matrix: Floats) -> Floats:
    if product.geometry is None:
        return x @ matrix.T
    import onnxruntime as ort

    weight = matrix.reshape(product.weight.shape)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * x.ndim) for n in ("x", "w", "y")]
    node = helper.make_node("Conv", ["x", "w"], ["y"], **product.geometry)
    graph = helper.make_graph([node], "convolution", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    runner = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Floats = runner.run(None, {"x": x, "w": weight})[0]
    return result
