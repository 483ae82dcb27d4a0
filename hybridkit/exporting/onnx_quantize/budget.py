"""An ONNX file to a budget: bits by layer, from what each costs the model's outputs. Without torch.

Each layer is tried alone with each option, its weight overridden in one session of the source: 1 - cosine of
the outputs, the mean over samples, of the worst output. Then as for networks (quant/budgets.py): the best sum
for every size, made, and measured through its file on inputs that nothing was fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybridkit.errors import GateError, UsageError
from hybridkit.exporting import files
from hybridkit.exporting.onnx_quantize import (
    OnnxReport,
    Opened,
    check_paths,
    measurement,
    open_layers,
    write_quantized,
)
from hybridkit.exporting.onnx_quantize.comparison import SILENT, Feed, run
from hybridkit.exporting.onnx_quantize.measurement import Seen
from hybridkit.exporting.onnx_quantize.products import Product
from hybridkit.exporting.onnx_quantize.rounding import Rounding, make_rounding
from hybridkit.exporting.onnx_quantize.substitution import stored_bytes
from hybridkit.packing.activations import Activations
from hybridkit.quant.budgets import Budget, BudgetReport, Choices, spend
from hybridkit.quant.knapsack import Row
from hybridkit.runtime.session import session

STAYS: Final = "as it is"
OPTIONS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "8 bits": ("nbit", {"bits": 8}),
    "4 bits g32": ("nbit", {"bits": 4, "group_size": 32}),
    "4 bits g128": ("nbit", {"bits": 4, "group_size": 128}),
    "2 bits g32": ("nbit", {"bits": 2, "group_size": 32}),
    "ternary": ("ternary-mse", {}),
    "binary": ("binary", {}),
}
LABELS: Final = (STAYS, *OPTIONS)
PROBED: Final = 8  # feeds, or samples of one, that layers are tried on


def quantize_onnx_within(
    source: Path,
    output: Path,
    budget: Budget,
    inputs: Sequence[Feed],
    *,
    activations: Activations = "float",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seen: Callable[[int, int], None] = lambda layer, layers: None,
) -> tuple[OnnxReport, BudgetReport]:
    """Write the file that suits the budget to `output`.

    inputs: arrays by input name, once or several times; every other feed, or sample of one, is measured on,
    the rest is fitted to. `seen` is called after each layer that was tried.

    Raises as `quantize_onnx`, and GateError, with nothing written, where nothing within the budget was found.
    """
    if not inputs:
        raise UsageError("a budget for an ONNX file needs --inputs, real ones: it is measured on them")
    check_paths(source, output, activations)
    fitted, measured = halves(inputs)
    steps = {label: make_rounding(name, options) for label, (name, options) in OPTIONS.items()}

    def opened() -> Opened:
        return open_layers(source, list(steps.values()), fitted[0], include, exclude)

    rows, weights = _tried(opened(), steps, fitted, measured, activations, seen)
    expected = _Answers(source, measured)
    whole = opened().admitted.file_bytes
    choices = Choices(rows, list(weights.values()), LABELS, whole - sum(row.costs[0] for row in rows))

    def write(picks: Sequence[int], file: Path) -> OnnxReport:
        chosen = {
            name: [steps[LABELS[pick]]] if pick else [] for name, pick in zip(weights, picks, strict=True)
        }
        return write_quantized(opened(), file, chosen, activations, None, fitted)

    def attempt(picks: Sequence[int]) -> tuple[int, float]:
        if not any(picks):
            return whole, 0.0
        with TemporaryDirectory() as folder:
            file = Path(folder) / output.name
            return write(picks, file).bytes_after, expected.lost(file)

    report = spend(choices, budget, "cosine", lambda lost: lost, attempt)
    best = report.tried[report.taken]
    if not any(best.options):
        raise GateError("nothing but the file as it is was within the budget; allow more")
    return write(best.options, output), report  # the same bytes again


def halves(inputs: Sequence[Feed]) -> tuple[list[Feed], list[Feed]]:
    """Feeds to fit to and others to measure on; one alone, or a single sample, is for both."""
    if len(inputs) > 1:
        return list(inputs[::2]), list(inputs[1::2])
    [feed] = inputs
    if _samples(feed) < 2:
        return [feed], [feed]
    return [{n: a[::2] for n, a in feed.items()}], [{n: a[1::2] for n, a in feed.items()}]


def _tried(
    opened: Opened,
    steps: Mapping[str, Rounding],
    fitted: Sequence[Feed],
    measured: Sequence[Feed],
    activations: Activations,
    seen: Callable[[int, int], None],
) -> tuple[list[Row], dict[str, int]]:
    """Costs and harms of every layer under every option, the first of which is to stay; its weights."""
    products = [p for p in opened.chosen.values() if p.node.graph is opened.model.graph]
    if not products:
        raise UsageError("the file has no layer to spend a budget on")
    reached = measurement.activations(opened.model, products, fitted)
    probe = [_few(feed) for feed in measured[:PROBED]]
    rows = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        files.save(_overridable(opened.model, products), path)
        answers = _Answers(path, probe)
        for number, product in enumerate(products):
            costs, harms = [product.weight.nbytes], [0.0]
            for step in steps.values():
                cost, matrix = _option(product, step, reached[product.name], activations == "int8")
                costs.append(cost)
                override = {_name(product): _as_stored(product, matrix)}
                harms.append(answers.lost(path, override) if cost < product.weight.nbytes else 1.0)
            rows.append(Row(tuple(costs), tuple(harms)))
            seen(number + 1, len(products))
    return rows, {product.name: product.weight.size for product in products}


def _option(product: Product, step: Rounding, seen: Seen, int8: bool) -> tuple[int, NDArray[np.float32]]:
    """Bytes of a layer under an option, and the weight [N, K] that is left of it."""
    matrix = product.matrix()
    found = None if seen.gram is None else step.fit(matrix, seen.gram, seen.count)
    found = found or step.quantize(matrix)
    return stored_bytes(product, step.holding(found), found, int8), found.dequantize()


def _as_stored(product: Product, matrix: NDArray[np.float32]) -> NDArray[Any]:
    """A weight [N, K] as the node reads it; Gemm's alpha is in it no longer."""
    if product.geometry:
        return matrix.reshape(product.weight.shape).astype(product.weight.dtype)
    attributes = product.node.attributes
    alpha = attributes["alpha"].as_float() if "alpha" in attributes else 1.0
    turned = "transB" in attributes and attributes["transB"].as_int()
    weight = matrix if turned else matrix.T
    return np.ascontiguousarray(weight / np.float32(alpha or 1.0)).astype(product.weight.dtype)


def _name(product: Product) -> str:
    return f"hybridkit.weight.{product.name}"


def _overridable(model: ir.Model, products: Sequence[Product]) -> ir.Model:
    """A copy in which the weight of each layer is an input that need not be given."""
    clone = model.clone()
    nodes = {node.outputs[0].name: node for node in clone.graph}
    for product in products:
        node = nodes[product.node.outputs[0].name]
        weight = ir.tensor(np.ascontiguousarray(product.weight))
        kind, shape = ir.TensorType(weight.dtype), ir.Shape(product.weight.shape)
        value = ir.Value(name=_name(product), type=kind, shape=shape, const_value=weight)
        clone.graph.initializers[_name(product)] = value
        clone.graph.inputs.append(value)
        node.replace_input_with(1, value)
    return clone


def _few(feed: Feed) -> Feed:
    """Some samples of a feed whose arrays agree on how many there are."""
    step = -(-_samples(feed) // PROBED)
    return {name: array[::step] for name, array in feed.items()} if step > 1 else feed


def _samples(feed: Feed) -> int:
    """How many a feed holds, if its arrays agree on that; else one."""
    counts = {array.shape[0] if array.ndim else 0 for array in feed.values()}
    return max(counts) if len(counts) == 1 else 1


class _Answers:
    """What a file gives on feeds, and how far others are from that."""

    def __init__(self, path: Path, feeds: Sequence[Feed]) -> None:
        self.feeds = feeds
        self._path, self._runner = path, session(path, native=False, log_severity_level=SILENT)
        self._wanted = [run(self._runner, feed, path.name) for feed in feeds]

    def lost(self, path: Path, override: Feed | None = None) -> float:
        """1 - cosine of the worst floating-point output, the mean over samples; 0 or more."""
        runner = self._runner
        if path != self._path:
            runner = session(path, native=False, low_memory=True, log_severity_level=SILENT)
        found = [run(runner, {**feed, **(override or {})}, path.name) for feed in self.feeds]
        names = [n for n, a in self._wanted[0].items() if np.issubdtype(a.dtype, np.floating) and a.size]
        if not names:
            raise UsageError("the model has no floating-point output to measure a budget on")
        pairs = list(zip(self._wanted, found, strict=True))
        return max(float(np.concatenate([_apart(w[n], f[n]) for w, f in pairs]).mean()) for n in names)


def _apart(wanted: NDArray[Any], found: NDArray[Any]) -> NDArray[np.float64]:
    """1 - cosine of each sample (the first axis)."""
    x, y = (np.atleast_1d(a).astype(np.float64).reshape(len(np.atleast_1d(a)), -1) for a in (wanted, found))
    sizes = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    same = np.einsum("ij,ij->i", x, y) / np.where(sizes > 0, sizes, 1)
    both_zero = (np.abs(x).max(axis=1) == 0) & (np.abs(y).max(axis=1) == 0)
    return np.where(both_zero, 0.0, np.maximum(1 - same, 0.0))
