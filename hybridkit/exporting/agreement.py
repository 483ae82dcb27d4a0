"""Whether the native operators compute what the portable bodies in a file compute.

Both run without graph optimisation: stock operators around ours are then the same kernels on both sides,
where an optimiser that sees the bodies may fuse them with their neighbours and round elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from hybridkit.errors import GateError
from hybridkit.exporting.files import written_bytes
from hybridkit.exporting.functions import CACHED_ATTENTION, DOMAIN, GATHER
from hybridkit.exporting.lowering import MICROSOFT
from hybridkit.exporting.protocol import Agreement
from hybridkit.runtime.library import library_path
from hybridkit.runtime.session import session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MOST_UNPACKED: Final = 4 * 2**20  # bytes of a file whose weights may be unpacked at load
TOLERANCE: Final = 1e-3  # of the largest output, where activations are floats: depth adds up last bits
MIXED_TOLERANCE: Final = 1e-2  # relative norm, where rounding of floats can move a code of int8 behind it
MOVED_TOLERANCE: Final = 0.25  # the same, where it does so in every layer of a language model: 0.04 was seen

Arrays = Sequence[NDArray[Any]]


def portable(path: Path, **options: Any) -> InferenceSession:
    """A session that runs the bodies in a file: what runs where nothing else is installed.

    Weights unpacked at load take 70 times their packed size; where that is much, each run unpacks them.
    """
    options |= {"native": False, "log_severity_level": 3}
    if written_bytes(path) > MOST_UNPACKED:
        options |= {"low_memory": True, "enable_cpu_mem_arena": False}
    return session(path, **options)


def check_native(path: Path, feed: Mapping[str, NDArray[Any]]) -> Agreement | None:
    """Run the file on `feed` by portable bodies and by native operators and compare all outputs.

    "equal": bit for bit, which int8 operators have to be. "close": to float32 rounding, or in a file of fp16
    to what that leaves. None: there is no native library, or no operator of ours in the file. Raises
    GateError where outputs differ by more.
    """
    model = onnx.load(str(path), load_external_data=False)
    products = _products(model.graph)
    modes = {_mode(operator) for operator in products}
    if _has_half(model.graph):
        modes.add("fp16")  # a runtime may leave out a cast to fp16 and back, and round elsewhere
    if library_path() is None or not modes - {"fp16"}:
        return None
    portable = _run(path, feed, False)
    rounding = any("Int8" in operator for operator in products)
    if CACHED_ATTENTION in products and rounding:
        # products are compared behind the same attention, as its last bits move codes of int8
        modes = {_mode(operator) for operator in products - {CACHED_ATTENTION}}
        with _stock_attention(model, path) as twin:
            native = _run(twin, feed, True)
        moved = _run(path, feed, True)
        close = all(norm <= MOVED_TOLERANCE for norm in map(_relative_norm, moved, portable))
        _check(path, close, moved, portable)
    else:
        native = _run(path, feed, True)
    for ours, theirs in zip(native, portable, strict=True):
        if modes == {"Int8"}:
            agree = np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")
        elif modes == {"Float"}:
            agree = _largest_difference(ours, theirs) <= TOLERANCE
        else:
            agree = _relative_norm(ours, theirs) <= MIXED_TOLERANCE
        _check(path, agree, [ours], [theirs])
    return "equal" if modes == {"Int8"} and CACHED_ATTENTION not in products else "close"


def _check(path: Path, agree: bool, native: Arrays, portable: Arrays) -> None:
    if not agree:
        raise GateError(
            f"{path.name} was not written: native operators and portable bodies differ by "
            f"{max(map(_largest_difference, native, portable)):.2e} of the largest output"
        )


@contextlib.contextmanager
def _stock_attention(model: onnx.ModelProto, path: Path) -> Iterator[Path]:
    """A file beside `path`, of the same weights, with the bodies of our attention in its place."""
    for node in model.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, CACHED_ATTENTION):
            node.domain, node.op_type = MICROSOFT, "GroupQueryAttention"
    twin = path.with_name(f"stock-attention-{path.name}")
    try:
        onnx.save(model, twin)
        yield twin
    finally:
        twin.unlink(missing_ok=True)


def _products(graph: onnx.GraphProto) -> set[str]:
    """The names of our operators in the file that compute; unpacked codes are exact."""
    return {
        n.op_type for n in graph.node if n.domain == DOMAIN and not n.op_type.endswith((GATHER, "Unpack"))
    }


def _has_half(graph: onnx.GraphProto) -> bool:
    half = onnx.TensorProto.FLOAT16
    casts = (each.i for node in graph.node if node.op_type == "Cast" for each in node.attribute)
    return half in casts or any(each.data_type == half for each in graph.initializer)


def _mode(operator: str) -> str:
    return "Int8" if operator.endswith("Int8") else "Float"


def _run(path: Path, feed: Mapping[str, NDArray[Any]], native: bool) -> list[NDArray[Any]]:
    import onnxruntime as ort

    plain = {"graph_optimization_level": ort.GraphOptimizationLevel.ORT_DISABLE_ALL}
    runner = session(path, log_severity_level=4, **plain) if native else portable(path, **plain)
    return [np.asarray(array) for array in runner.run(None, dict(feed))]


def _largest_difference(x: NDArray[Any], y: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore"):
        difference = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0, np.abs(x - y))
    largest = np.abs(y[np.isfinite(y)]).max(initial=0)
    return float(difference.max(initial=0) / (largest or 1))


def _relative_norm(x: NDArray[Any], y: NDArray[Any]) -> float:
    return float(np.linalg.norm((x - y).ravel()) / (np.linalg.norm(y.ravel()) or 1))
