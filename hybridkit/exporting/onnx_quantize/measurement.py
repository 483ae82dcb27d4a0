"""How much of a layer is lost: in its weight, or in its output on given inputs; what reaches it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from hybridkit.exporting import files
from hybridkit.exporting.onnx_quantize.comparison import SILENT
from hybridkit.exporting.onnx_quantize.patches import patches
from hybridkit.exporting.onnx_quantize.products import Product
from hybridkit.runtime.session import session

Floats = NDArray[np.float32]
Feed = Mapping[str, NDArray[Any]]

MOST_ROWS: Final = 512  # of a matrix product's activations that an error is measured on
MOST_SAMPLES: Final = 8  # of a convolution's
WIDEST: Final = 8_192  # columns whose moments are worth their memory, and the time to use them
_AT_ONCE: Final = 16  # layers whose activations are in memory before they are cut to that


@dataclass(frozen=True, slots=True)
class Seen:
    """What reaches a layer on given inputs.

    x: some of it, that its error is measured on. gram: float32 [K, K], the second moments of the rest; None
    where K is above WIDEST. count: rows, or patches, that they are of.
    """

    x: Floats
    gram: Floats | None
    count: int


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


def activations(model: ir.Model, products: Sequence[Product], feeds: Sequence[Feed]) -> dict[str, Seen]:
    """What reaches each layer when the model runs on `feeds`, by the layer's name.

    Every other feed is for moments; of one alone every other row, or sample of a convolution, and one row
    alone is for both. Of the others at most MOST_ROWS or MOST_SAMPLES are kept. Layers in graphs inside the
    graph are left out.
    """
    readers: dict[str, list[Product]] = {}
    for product in products:
        if product.node.graph is model.graph:
            readers.setdefault(product.x.name or "", []).append(product)
    inside = sorted(name for name in readers if name not in feeds[0])
    collected = {product.name: _Collected(product) for each in readers.values() for product in each}

    def see(number: int, name: str, array: NDArray[Any]) -> None:
        part = _BOTH if len(feeds) == 1 else (_MOMENTS, _KEPT)[number % 2]
        for product in readers.get(name, []):
            collected[product.name].add(array, part)

    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        files.save(_with_outputs(model, inside), path)
        runner = session(path, native=False, log_severity_level=SILENT)
        for number, feed in enumerate(feeds):
            for name, array in feed.items():
                see(number, name, array)
            for start in range(0, len(inside), _AT_ONCE):
                names = inside[start : start + _AT_ONCE]
                for name, array in zip(names, runner.run(names, dict(feed)), strict=True):
                    see(number, name, array)
    return {name: each.seen() for name, each in collected.items()}


_BOTH, _MOMENTS, _KEPT = "both", "moments", "kept"


class _Collected:
    """What reached one layer, feed after feed."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.wide = product.matrix().shape[1] > WIDEST
        self.gram: Floats | None = None
        self.count = 0
        self.kept: list[Floats] = []

    def add(self, array: NDArray[Any], part: str) -> None:
        """What reaches it in one feed, for moments, to keep, or in halves for both."""
        if self.product.geometry is None and array.ndim:
            array = array.reshape(-1, array.shape[-1])
        half = part == _BOTH and len(array) > 1
        fitted, kept = (array[::2], array[1::2]) if half else (array, array)
        if part != _KEPT and not self.wide:
            self._add_moments(fitted)
        most = MOST_SAMPLES if self.product.geometry else MOST_ROWS
        if part != _MOMENTS and not (self.kept and self.product.geometry):  # images differ in size
            self.kept.append(kept[:: -(-len(kept) // most) or 1].astype(np.float32))

    def _add_moments(self, x: NDArray[Any]) -> None:
        geometry = self.product.geometry
        rows = (x if geometry is None else patches(x, self.product.weight.shape, geometry)).astype(np.float32)
        moments = rows.T @ rows
        self.gram = moments if self.gram is None else self.gram + moments
        self.count += len(rows)

    def seen(self) -> Seen:
        """All of it."""
        x = self.kept[0] if len(self.kept) == 1 else np.concatenate(self.kept)
        gram: Floats | None = None
        if self.gram is not None:
            gram = (self.gram / max(self.count, 1)).astype(np.float32)
        return Seen(x if self.product.geometry else x[:: -(-len(x) // MOST_ROWS) or 1], gram, self.count)


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    clone = model.clone()
    known = {value.name for value in clone.graph.outputs}
    values = {v.name: v for node in clone.graph for v in node.outputs}
    clone.graph.outputs.extend(values[name] for name in names if name not in known)
    return clone


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
