"""The whole bench, or one section of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from hybridkit.bench.claims import judge
from hybridkit.bench.convergence.findings import findings
from hybridkit.bench.convergence.methods import METHODS, OURS, TUNED
from hybridkit.bench.convergence.plan import Plan, small
from hybridkit.bench.convergence.run import Progress, Trials, gather, step_times, tune
from hybridkit.bench.convergence.store import plain_store, trial_store
from hybridkit.bench.convergence.suitable import suited
from hybridkit.bench.convergence.summary import ConvergenceResult, summarise
from hybridkit.bench.convergence.trials import Trial, run
from hybridkit.bench.exported import export_trained
from hybridkit.bench.inference import InferenceResult, measure_inference, steps
from hybridkit.bench.latency import Effort
from hybridkit.bench.machine import available_cores, this_machine
from hybridkit.bench.overhead import OverheadResult
from hybridkit.bench.pool import Runs, processes
from hybridkit.bench.quantization import (
    QuantizationPlan,
    QuantizationResult,
    QuantizedRecord,
    QuantizedTrial,
    measure_quantization,
    measure_quantized,
)
from hybridkit.bench.results import BenchResults, Settings
from hybridkit.registry import registry

Section = Literal["convergence", "quantization", "inference"]
SECTIONS: Final[tuple[Section, ...]] = ("convergence", "quantization", "inference")
SEEDS: Final = 5
EPOCHS: Final = 10
DEFAULT_EFFORT: Final = Effort()


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure. `model`: the file whose inference is measured; None trains and exports one.

    grid: learning rates tried for a rival. rounds: of timing the overhead. trials: the file that keeps the
    runs of convergence; those of quantisation are beside it.
    """

    sections: tuple[Section, ...] = SECTIONS
    task: str = "digits"
    seeds: int = SEEDS
    epochs: int = EPOCHS
    threads: tuple[int, ...] = ()  # of inference; none: one, and all cores
    model: Path | None = None
    grid: int = 5
    rounds: int = 20
    effort: Effort = DEFAULT_EFFORT
    trials: Path = Path("bench-results/trials.jsonl")

    def quick(self) -> Request:
        """A try-out: too little for conclusions."""
        return replace(
            self,
            seeds=min(self.seeds, 2),
            epochs=1,
            grid=1,
            rounds=4,
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
    convergence = quantization = inference = None
    overheads: list[OverheadResult] = []
    if set(request.sections) & {"convergence", "quantization"}:
        plan, metric = _plan(request)
        convergence, quantization = _training(request, plan, metric, workers, progress)
        if convergence:
            timed = replace(plan, rounds=request.rounds)
            overheads = list(step_times(timed, request.trials, progress).values())
    if "inference" in request.sections:
        inference = _inference(request, threads, progress)
    return BenchResults(
        machine=this_machine(),
        settings=Settings(
            sections=list(request.sections),
            task=request.task,
            seeds=list(range(request.seeds)),
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


def _plan(request: Request) -> tuple[Plan, str]:
    """What is compared here, and the task's metric; counting the steps of an epoch loads the data."""
    from hybridkit.tasks.resolve import make_task
    from hybridkit.training.config import TrainConfig

    task, batch = make_task(request.task), TrainConfig().batch_size
    epoch = -(-len(task.splits().train[0]) // batch)
    plan = small(request.task, request.epochs * epoch, batch, request.seeds, request.grid)
    return suited(plan), task.metric


def _training(
    request: Request, plan: Plan, metric: str, workers: int, progress: Progress
) -> tuple[ConvergenceResult | None, QuantizationResult | None]:
    """Both sections that train; they share the learning rates of AdamW."""
    convergence = quantization = None
    with processes(workers) as executor:
        trials: Trials = Runs(run, executor, trial_store(request.trials))
        if "convergence" in request.sections:
            rates = gather(plan, trials, progress)
            found = findings(plan, trials.results, rates)
            convergence = summarise(plan, found, trials.results, metric)
        else:
            rates = tune(replace(plan, among=(TUNED,)), trials, progress)
        if "quantization" in request.sections:
            ternary, full = plan.settings
            compared = QuantizationPlan(full, plan.seeds, request.epochs, rates[ternary, TUNED])
            kept = plain_store(request.trials.with_name("quantised.jsonl"), QuantizedRecord)
            runs: Runs[QuantizedTrial, QuantizedRecord] = Runs(measure_quantized, executor, kept)
            missing = len(runs.missing(compared.trials()))
            quantization = measure_quantization(compared, runs, progress("Quantisation", missing))
    return convergence, quantization


def _inference(request: Request, threads: Sequence[int], progress: Progress) -> InferenceResult:
    tick = progress("Inference", steps(threads) + (request.model is None))
    if request.model is not None:
        return measure_inference(request.model, threads=threads, effort=request.effort, tick=tick)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{request.task.replace(':', '-')}-ternary.onnx"
        trial = Trial(_plan(request)[0].settings[0], METHODS[OURS], seed=0)
        with processes(1) as executor:
            executor.submit(export_trained, trial, str(path)).result()
        tick()
        return measure_inference(path, threads=threads, effort=request.effort, tick=tick)
