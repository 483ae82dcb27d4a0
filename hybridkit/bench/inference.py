"""An ONNX file, ours or any other, as it runs here: speed, memory, size, quality, beside its peers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hybridkit.bench.feeds import Feed, Input, feed, model_inputs, recorded_shapes
from hybridkit.bench.latency import Effort, Timing, compare_latency
from hybridkit.bench.layers import LayerResult, measure_layers
from hybridkit.bench.memory import measure_memory, write_empty
from hybridkit.bench.pool import Tick
from hybridkit.bench.quality import quality_of
from hybridkit.bench.twin import load
from hybridkit.bench.variants import NAMES, TWIN, Variant, write_variants
from hybridkit.errors import HybridkitError
from hybridkit.runtime.native import Native
from hybridkit.runtime.native import load as native_library

if TYPE_CHECKING:
    import onnx_ir as ir

BATCHES: Final = (1, 8, 128)
DISTINCT: Final = 8  # inputs that take turns


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One way to run the network. `metric` is None where the file names no task that is registered here."""

    variant: str
    file_bytes: int
    resident_bytes: int
    peak_bytes: int | None
    metric: float | None


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """One variant's timing at one batch size and number of threads. cold: caches filled with other things."""

    variant: str
    batch: int
    threads: int
    timing: Timing
    cold: bool = False


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """A model file beside the same network as its peers store it.

    operators: what runs the packed layers. output_error: ||model - twin||^2 / ||twin||^2 on random inputs.
    isa: of the native kernels, None without them; layers: measured where they run.
    """

    model: str
    packed_layers: int
    operators: str
    task: str | None
    metric: str | None
    samples: int
    output_error: float | None
    variants: list[VariantResult]
    latencies: list[LatencyResult]
    notes: list[str]
    isa: str | None = None
    layers: list[LayerResult] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Workload:
    """What the models are fed: their inputs, and sizes and bounds where only the file knows them."""

    inputs: list[Input]
    examples: Mapping[str, tuple[int, ...]]
    bound: int

    def feeds(self, batch: int, count: int = DISTINCT) -> list[Feed]:
        """`count` different inputs."""
        return [
            feed(self.inputs, batch, seed, bound=self.bound, examples=self.examples) for seed in range(count)
        ]

    def batches(self, wanted: Sequence[int]) -> list[int]:
        """The batch sizes that the model can take of those wanted."""
        first = self.inputs[0] if self.inputs else None
        if first is None or not first.shape:
            return [1]
        return list(wanted) if first.batch_is_free else [int(first.shape[0])]


def measure_inference(
    path: Path,
    *,
    threads: Sequence[int],
    batches: Sequence[int] = BATCHES,
    effort: Effort | None = None,
    tick: Tick = lambda: None,
) -> InferenceResult:
    """Measure the model at `path` with each number of threads; `tick` is called `steps(...)` times.

    Raises FileError if the file is missing or no ONNX model, HybridkitError if it cannot be run.
    """
    from hybridkit.exporting.door import admit

    native = native_library()
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.onnx"
        write_empty(empty)
        graph = load(path)
        packed, variants, notes = write_variants(path, Path(folder))
        tick()
        work = _workload(variants[0], graph)
        sizes = work.batches(batches)
        latencies = _latencies(variants, work, threads, sizes, effort or Effort(), tick)
        quality = quality_of(variants, graph.metadata_props)
        results = []
        for variant in variants:
            memory = measure_memory(
                variant.path, empty, threads=threads[0], bound=work.bound, native=variant.native
            )
            results.append(
                VariantResult(
                    variant=variant.name,
                    file_bytes=admit(variant.path).file_bytes,
                    resident_bytes=memory.resident_bytes,
                    peak_bytes=memory.peak_bytes,
                    metric=quality.values.get(variant.name),
                )
            )
            tick()
        twin = next((v for v in variants if v.name == TWIN), None)
        error = _output_error(variants[0], twin, work) if twin else None
        layers = []
        if native and twin:
            from hybridkit.exporting.graph import packed_nodes

            nodes = list(packed_nodes(graph))
            for size in sizes:
                feeds, most = work.feeds(size), max(threads)
                layers += measure_layers(nodes, variants[0], twin, native, feeds, size, most)
        tick()
    notes += [quality.note] if quality.note else []
    if not packed:
        notes.append("the file has no packed layers, so there is no fp32 twin to compare it with")
    return InferenceResult(
        model=path.name,
        packed_layers=packed,
        operators=_operators(packed, native),
        task=quality.task,
        metric=quality.metric,
        samples=quality.samples,
        output_error=error,
        variants=results,
        latencies=latencies,
        notes=notes,
        isa=native.isa if native else None,
        layers=layers,
    )


def _operators(packed: int, native: Native | None) -> str:
    if not packed:
        return "ONNX Runtime's own kernels"
    if native is None:
        return "portable bodies on ONNX Runtime's own kernels"
    return f"native operators on {native.isa}"


def steps(threads: Sequence[int], batches: Sequence[int] = BATCHES) -> int:
    """How often `measure_inference` ticks at most, for a progress bar."""
    return 3 + len(NAMES) + 2 * len(threads) * len(batches)


def _workload(variant: Variant, graph: ir.Model) -> Workload:
    probe = variant.session(1)
    return Workload(
        model_inputs(probe), recorded_shapes(probe.get_modelmeta().custom_metadata_map), index_bound(graph)
    )


def index_bound(graph: ir.Model) -> int:
    """The least number of rows that a graph's inputs pick from: integers below it are valid everywhere."""
    inputs = set(graph.graph.inputs)
    rows = [
        node.inputs[0].shape[0]
        for node in graph.graph
        if node.op_type == "Gather"
        and node.inputs[1] in inputs
        and node.inputs[0] is not None
        and node.inputs[0].shape
    ]
    return min((size for size in rows if isinstance(size, int)), default=2)


def _latencies(
    variants: Sequence[Variant],
    work: Workload,
    threads: Sequence[int],
    batches: Sequence[int],
    effort: Effort,
    tick: Tick,
) -> list[LatencyResult]:
    found = []
    for count in threads:
        sessions = {variant.name: variant.session(count) for variant in variants}
        for batch in batches:
            for cold in (False, True):
                try:
                    timings = compare_latency(sessions, work.feeds(batch), batch, effort, cold=cold)
                except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
                    reason = " ".join(str(error).split())
                    raise HybridkitError(f"the model does not run on made-up inputs: {reason}") from error
                found += [LatencyResult(name, batch, count, t, cold) for name, t in timings.items()]
                tick()
    return found


def _output_error(ours: Variant, twin: Variant, work: Workload) -> float:
    from hybridkit.bench.statistics import squared_relative_error

    batch = work.batches((32,))[0]
    [given] = work.feeds(batch, 1)
    return squared_relative_error(ours.session(1).run(None, given)[0], twin.session(1).run(None, given)[0])
