"""An ONNX file, ours or any other, as it runs here: speed, memory, size, quality, beside its fp32 twin."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hybridkit.bench.feeds import Feed, Input, feed, model_inputs, recorded_shapes
from hybridkit.bench.latency import Effort, Timing, compare_latency
from hybridkit.bench.memory import measure_memory, write_empty
from hybridkit.bench.pool import Tick
from hybridkit.bench.twin import load, write_twin
from hybridkit.errors import FileError, HybridkitError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

BATCHES: Final = (1, 8, 128)
DISTINCT: Final = 8  # inputs that take turns
TWIN: Final = "fp32 twin"
SAMPLES: Final = 2048  # of the test data, at most


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One of the two files. `metric` is None where the file names no task that is registered here."""

    variant: str
    file_bytes: int
    resident_bytes: int
    peak_bytes: int | None
    metric: float | None


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """One variant's timing at one batch size and number of threads."""

    variant: str
    batch: int
    threads: int
    timing: Timing


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """A model file beside its fp32 twin, or alone where it has no packed layers.

    operators: what runs the packed layers. output_error: ||model - twin||^2 / ||twin||^2 on random inputs.
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
    with tempfile.TemporaryDirectory() as folder:
        twin, empty = Path(folder) / "twin.onnx", Path(folder) / "empty.onnx"
        write_empty(empty)
        graph = load(path)
        layers = write_twin(path, twin)
        tick()
        files = {path.name: path} | ({TWIN: twin} if layers else {})
        work = _workload(path, graph)
        latencies = _latencies(files, work, threads, work.batches(batches), effort or Effort(), tick)
        memory = {}
        for name, file in files.items():
            memory[name] = measure_memory(file, empty, threads=threads[0], bound=work.bound)
            tick()
        quality = _quality(files, graph.metadata_props)
        error = _output_error(path, twin, work) if layers else None
        variants = [
            VariantResult(
                variant=name,
                file_bytes=model_bytes(file),
                resident_bytes=memory[name].resident_bytes,
                peak_bytes=memory[name].peak_bytes,
                metric=quality.values.get(name),
            )
            for name, file in files.items()
        ]
        tick()
    notes = [quality.note] if quality.note else []
    if not layers:
        notes.append("the file has no packed layers, so there is no fp32 twin to compare it with")
    return InferenceResult(
        model=path.name,
        packed_layers=layers,
        operators="portable bodies on ONNX Runtime's own kernels" if layers else "ONNX Runtime's own kernels",
        task=quality.task,
        metric=quality.metric,
        samples=quality.samples,
        output_error=error,
        variants=variants,
        latencies=latencies,
        notes=notes,
    )


def steps(threads: Sequence[int], batches: Sequence[int] = BATCHES) -> int:
    """How often `measure_inference` ticks at most, for a progress bar."""
    return 4 + len(threads) * len(batches)


def model_bytes(path: Path) -> int:
    """Bytes of a model file and of the external data it names; what it names outside its folder is foreign.

    Raises FileError if a data file is missing.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    names = set()
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            names |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    try:
        return sum(part.stat().st_size for part in (path, *(path.parent / name for name in sorted(names))))
    except OSError as error:
        raise FileError(f"{path}: its data file cannot be read: {error}") from None


def _tensors(model: Any) -> list[Any]:
    return [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute)]


def _workload(path: Path, graph: ir.Model) -> Workload:
    probe = _session(path, 1)
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


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    from hybridkit.runtime.session import session

    return session(path, threads=threads, log_severity_level=3)


def _latencies(
    files: Mapping[str, Path],
    work: Workload,
    threads: Sequence[int],
    batches: Sequence[int],
    effort: Effort,
    tick: Tick,
) -> list[LatencyResult]:
    found = []
    for count in threads:
        sessions = {name: _session(file, count) for name, file in files.items()}
        for batch in batches:
            try:
                timings = compare_latency(sessions, work.feeds(batch), batch, effort)
            except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
                reason = " ".join(str(error).split())
                raise HybridkitError(f"the model does not run on made-up inputs: {reason}") from error
            found += [LatencyResult(name, batch, count, timing) for name, timing in timings.items()]
            tick()
    return found


def _output_error(path: Path, twin: Path, work: Workload) -> float:
    from hybridkit.bench.quantization import relative_error

    batch = work.batches((32,))[0]
    [given] = work.feeds(batch, 1)
    return relative_error(_session(path, 1).run(None, given)[0], _session(twin, 1).run(None, given)[0])


@dataclass(frozen=True, slots=True)
class Quality:
    """A task's metric for each file; `note` says why there is none."""

    task: str | None
    metric: str | None
    samples: int
    values: dict[str, float]
    note: str


def _quality(files: Mapping[str, Path], metadata: Mapping[str, str]) -> Quality:
    """The metric on the test data of the task that the file names; only registered tasks are used."""
    from hybridkit.registry import registry

    name = metadata.get("hybridkit.task", "")
    try:
        registry().find("task", name)
    except UsageError:
        reason = f"the file names no registered task ({name!r})" if name else "the file names no task"
        return Quality(None, None, 0, {}, f"{reason}: no quality is measured")
    try:
        return _measure_quality(files, name)
    except HybridkitError as error:
        return Quality(name, None, 0, {}, f"no quality is measured: {error}")


def _measure_quality(files: Mapping[str, Path], name: str) -> Quality:
    import torch

    from hybridkit.tasks.resolve import make_task

    task = make_task(name)
    data = tuple(part[:SAMPLES] for part in task.splits().test)
    values = {}
    for variant, file in files.items():
        runner = _session(file, 1)
        names = [value.name for value in runner.get_inputs()]
        total = 0.0
        for start in range(0, len(data[0]), 256):
            batch = tuple(part[start : start + 256] for part in data)
            given = {n: x.numpy() for n, x in zip(names, task.inputs(batch), strict=True)}
            output = torch.from_numpy(runner.run(None, given)[0])
            scores = {"loss": float(task.loss(output, batch)), **task.metrics(output, batch)}
            total += float(scores[task.metric]) * len(batch[0])
        values[variant] = total / len(data[0])
    return Quality(name, task.metric, len(data[0]), values, "")
