"""The whole bench, or one section of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from hybridkit.bench.claims import judge
from hybridkit.bench.convergence import DEFAULT_RATE, LEARNING_RATES, ConvergenceResult, Plan, compare, tune
from hybridkit.bench.exported import export_trained
from hybridkit.bench.inference import InferenceResult, measure_inference, steps
from hybridkit.bench.latency import Effort
from hybridkit.bench.machine import available_cores, this_machine
from hybridkit.bench.overhead import OverheadResult, OverheadSpec, measure_overhead
from hybridkit.bench.pool import Runs, Tick, processes
from hybridkit.bench.quantization import QuantizationResult, measure_quantization, quantization_runs
from hybridkit.bench.results import BenchResults, Settings
from hybridkit.bench.runs import HYBRID, Precision, RunRecord, RunSpec, measure_run
from hybridkit.registry import registry

Section = Literal["convergence", "quantization", "inference"]
SECTIONS: Final[tuple[Section, ...]] = ("convergence", "quantization", "inference")
SEEDS: Final = 5
EPOCHS: Final = 10
DEFAULT_EFFORT: Final = Effort()
OVERHEAD_PRECISIONS: Final[tuple[Precision, ...]] = ("ternary", "fp32")
Progress = Callable[[str, int], Tick]  # a title and how many steps; what it returns is called at each


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure. `model`: the file whose inference is measured; None trains and exports one.

    rates: learning rates tried for the baseline. pairs: pairs of epochs that the overhead is timed on.
    """

    sections: tuple[Section, ...] = SECTIONS
    task: str = "digits"
    seeds: int = SEEDS
    epochs: int = EPOCHS
    threads: tuple[int, ...] = ()  # of inference; none: one, and all cores
    model: Path | None = None
    rates: tuple[float, ...] = LEARNING_RATES
    pairs: int = 10
    effort: Effort = DEFAULT_EFFORT

    def quick(self) -> Request:
        """A try-out: too little for conclusions."""
        return replace(
            self,
            seeds=min(self.seeds, 2),
            epochs=1,
            rates=(DEFAULT_RATE,),
            pairs=2,
            effort=Effort(rounds=2, seconds=0.02),
        )


def run_bench(request: Request, progress: Progress) -> BenchResults:
    """Measure the sections of `request`, and judge the claims they say something about.

    Raises UsageError for a task that does not exist, and what training, export and inference raise.
    """
    if ":" not in request.task:
        registry().find("task", request.task)  # before any process is started
    started = time.perf_counter()
    workers = available_cores()
    threads = request.threads or tuple(sorted({1, workers}))
    seeds = list(range(request.seeds))
    convergence = quantization = inference = None
    overheads: list[OverheadResult] = []
    if set(request.sections) & {"convergence", "quantization"}:
        convergence, quantization = _training(request, seeds, workers, progress)
    if "convergence" in request.sections:
        overheads = _overheads(request, progress)
    if "inference" in request.sections:
        inference = _inference(request, threads, progress)
    return BenchResults(
        machine=this_machine(),
        settings=Settings(
            sections=list(request.sections),
            task=request.task,
            seeds=seeds,
            epochs=request.epochs,
            workers=workers,
            threads=list(threads),
        ),
        seconds=time.perf_counter() - started,
        convergence=convergence,
        quantization=quantization,
        overhead=overheads,
        inference=inference,
        claims=judge(convergence, quantization, overheads),
    )


def _training(
    request: Request, seeds: Sequence[int], workers: int, progress: Progress
) -> tuple[ConvergenceResult | None, QuantizationResult | None]:
    """Both sections that train, which have runs in common."""
    plan = Plan(request.task, seeds, request.epochs, request.rates)
    convergence = quantization = None
    with processes(workers) as executor:
        runs: Runs[RunSpec, RunRecord] = Runs(measure_run, executor)
        rates, tuning = tune(plan, runs, progress("Tuning the baseline", len(plan.tuning_runs())))
        if "convergence" in request.sections:
            tick = progress("Convergence", len(runs.missing(plan.runs(rates))))
            convergence = compare(plan, runs, rates, tuning, tick)
        if "quantization" in request.sections:
            tick = progress("Quantisation", len(runs.missing(quantization_runs(plan, rates))))
            quantization = measure_quantization(plan, runs, rates, tick)
    return convergence, quantization


def _overheads(request: Request, progress: Progress) -> list[OverheadResult]:
    """One process, and nothing else at the same time."""
    specs = [OverheadSpec(request.task, precision, request.pairs) for precision in OVERHEAD_PRECISIONS]
    with processes(1) as executor:
        runs: Runs[OverheadSpec, OverheadResult] = Runs(measure_overhead, executor)
        return list(runs.get(specs, progress("Overhead", len(specs))).values())


def _inference(request: Request, threads: Sequence[int], progress: Progress) -> InferenceResult:
    tick = progress("Inference", steps(threads) + (request.model is None))
    if request.model is not None:
        return measure_inference(request.model, threads=threads, effort=request.effort, tick=tick)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{request.task.replace(':', '-')}-ternary.onnx"
        spec = RunSpec(request.task, HYBRID, "ternary", seed=0, epochs=request.epochs)
        with processes(1) as executor:
            executor.submit(export_trained, spec, str(path)).result()
        tick()
        return measure_inference(path, threads=threads, effort=request.effort, tick=tick)
