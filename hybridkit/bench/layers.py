"""The packed layers of a file one by one: how long each takes in the network, and which kernel runs it."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, cast

from hybridkit.bench.feeds import Feed
from hybridkit.bench.variants import Variant

if TYPE_CHECKING:
    from hybridkit.exporting.graph import PackedNode
    from hybridkit.packing.activations import Activations
    from hybridkit.runtime.native import Codec, LowBit, Native

RUNS: Final = 15  # of the profiled network; the median of each layer counts
PRODUCTS: Final = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv")
SLOW: Final = 3.0  # times as long as the same kernel takes for as much work on a large matrix
CALL_SECONDS: Final = 30e-6  # what a call may cost beside its work, the profiler included
NOISE: Final = 1.1  # a smaller difference from the twin is none
REFERENCE: Final = 1024  # N and K of that large matrix
SLOWER_THAN_TWIN, FAR = "slower than in fp32", "far from its kernel's speed"


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One packed layer at one batch size. rows: M of the product; threads: that can work at once.

    twin_us: the same product in the fp32 twin; None where none has its shape. flag: why it counts as slow.
    """

    layer: str
    operator: str
    n: int
    k: int
    batch: int
    rows: int
    kernel: str
    threads: int
    us: float
    twin_us: float | None
    flag: str


@dataclass(frozen=True, slots=True)
class Event:
    """A node that ran: its operator, the shapes of its first input and output, microseconds."""

    node: str
    operator: str
    x: tuple[int, ...]
    y: tuple[int, ...]
    us: float


def measure_layers(
    packed: Sequence[PackedNode],
    ours: Variant,
    twin: Variant,
    native: Native,
    feeds: Sequence[Feed],
    batch: int,
    threads: int,
) -> list[LayerResult]:
    """Each of the `packed` products, in the order in which they run."""
    by_name = {layer.node.name: layer for layer in packed}
    peers = [event for event in profile(twin, feeds, threads) if event.operator in PRODUCTS]
    found = []
    for event in profile(ours, feeds, threads):
        layer = by_name.get(event.node)
        if layer is None or layer.kind == "Embedding":
            continue
        peer = next((p for p in peers if (p.x, p.y) == (event.x, event.y)), None)
        if peer is not None:
            peers.remove(peer)
        found.append(_result(layer, event, peer, native, batch, threads))
    return found


def profile(variant: Variant, feeds: Sequence[Feed], threads: int) -> list[Event]:
    """Every node of the network in order, with its median time."""
    from hybridkit.runtime.session import session

    with tempfile.TemporaryDirectory() as folder:
        runner = session(
            variant.path,
            threads=threads,
            native=variant.native,
            log_severity_level=3,
            enable_profiling=True,
            profile_file_prefix=str(Path(folder) / "run"),
        )
        for turn in range(RUNS):
            runner.run(None, feeds[turn % len(feeds)])
        document = json.loads(Path(runner.end_profiling()).read_text("utf-8"))
    return list(_events(document))


def _events(document: Sequence[dict[str, Any]]) -> Iterator[Event]:
    by_node: dict[str, list[dict[str, Any]]] = {}
    for event in document:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_node.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event)
    for name, events in by_node.items():
        arguments = events[-1]["args"]
        x, y = (_first_shape(arguments.get(key)) for key in ("input_type_shape", "output_type_shape"))
        yield Event(name, arguments["op_name"], x, y, float(median(event["dur"] for event in events)))


def _first_shape(shapes: Sequence[dict[str, list[int]]] | None) -> tuple[int, ...]:
    return tuple(next(iter(shapes[0].values()), ())) if shapes else ()


def _result(
    layer: PackedNode, event: Event, peer: Event | None, native: Native, batch: int, threads: int
) -> LayerResult:
    rows = math.prod(event.y) // layer.N
    kernel, tasks, flag = "convolution", threads, ""
    if peer is not None and event.us > NOISE * peer.us:
        flag = SLOWER_THAN_TWIN
    if layer.kind == "MatMul":
        mode: Activations = "float" if layer.node.op_type.endswith("Float") else "int8"
        codec = cast("Codec", layer.prefix.lower())
        kernel = native.kernel(codec, mode, layer.N, layer.K, rows, layer.group_size)
        tasks = native.tasks(codec, mode, layer.N, layer.K, rows, layer.group_size)
        if codec == "ternary" or codec == "binary":
            work = layer.N * layer.K / REFERENCE**2 * reference_seconds(native, codec, mode, rows, threads)
            if event.us * 1e-6 > SLOW * work + CALL_SECONDS:
                flag = FAR
    return LayerResult(
        layer=layer.name,
        operator=layer.node.op_type,
        n=layer.N,
        k=layer.K,
        batch=batch,
        rows=rows,
        kernel=kernel,
        threads=min(tasks, threads),
        us=event.us,
        twin_us=None if peer is None else peer.us,
        flag=flag,
    )


def reference_seconds(
    native: Native, codec: LowBit, activations: Activations, rows: int, threads: int
) -> float:
    """What the kernel takes for `rows` rows and a matrix [REFERENCE, REFERENCE] that is in the caches."""
    import numpy as np

    x = np.random.default_rng(0).standard_normal((rows, REFERENCE), np.float32)
    bits = 2 if codec == "ternary" else 1
    codes = np.full(REFERENCE * REFERENCE * bits // 8, 0b01010101, np.uint8)
    ones, zeros = np.ones(REFERENCE, np.float32), np.zeros(REFERENCE, np.float32)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        native.matmul(x, codes, ones, zeros, codec=codec, activations=activations, threads=threads)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
