"""One tiny bench for all tests that look at results: 2 seeds, 1 epoch, in this process."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from hybridkit.bench.arena.cells import Cell
from hybridkit.bench.arena.findings import findings
from hybridkit.bench.arena.methods import TUNED
from hybridkit.bench.arena.plan import small
from hybridkit.bench.arena.run import gather
from hybridkit.bench.arena.trials import run
from hybridkit.bench.claims import judge
from hybridkit.bench.convergence import summarise
from hybridkit.bench.inference import measure_inference
from hybridkit.bench.latency import Effort
from hybridkit.bench.machine import this_machine
from hybridkit.bench.overhead import OverheadSpec, measure_overhead
from hybridkit.bench.pool import Runs
from hybridkit.bench.quantization import QuantizationPlan, measure_quantization
from hybridkit.bench.results import BenchResults, Settings
from hybridkit.bench.runs import HYBRID, RunSpec, measure_run

TASK = "bench_tiny_task:tiny"
LEAST = Effort(rounds=1, seconds=0.001)


def _ignore() -> None:
    pass


class Here:
    """An executor that works where it is called."""

    def submit(self, call, *arguments):
        done = Future()
        done.set_result(call(*arguments))
        return done


@pytest.fixture
def here():
    """An executor that works where it is called."""
    return Here()


@pytest.fixture(scope="session")
def converged():
    """plan, trials, chosen learning rates, findings, convergence result."""
    plan = small(TASK, steps=5, batch_size=32, seeds=2, grid=2)
    trials = Runs(run, None)
    rates = gather(plan, trials, lambda title, count: _ignore)
    found = findings(plan, trials.results, rates)
    return plan, trials, rates, found, summarise(plan, found, trials.results, "accuracy")


@pytest.fixture(scope="session")
def quantised(converged):
    """plan, runs, quantisation result."""
    rates = {cell.precision: converged[2][cell, TUNED] for cell in converged[0].cells}
    plan = QuantizationPlan(TASK, (0, 1), 1, rates["ternary"])
    runs = Runs(measure_run, None)
    return plan, runs, measure_quantization(plan, runs, _ignore)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A ternary network of digits as ONNX."""
    from hybridkit.bench.exported import export_trained

    path = tmp_path_factory.mktemp("exported") / "digits.onnx"
    export_trained(RunSpec("digits", HYBRID, "ternary", 0, 1), str(path))
    return path


@pytest.fixture(scope="session")
def inference(exported):
    """The inference bench of `exported`."""
    return measure_inference(exported, threads=(1,), batches=(1, 3), effort=LEAST)


@pytest.fixture(scope="session")
def results(converged, quantised, inference):
    """A whole result document."""
    convergence, quantization = converged[-1], quantised[-1]
    overheads = [measure_overhead(OverheadSpec(Cell(TASK, "ternary", 5, 32), 2))]
    return BenchResults(
        machine=this_machine(),
        settings=Settings(["convergence", "quantization", "inference"], TASK, [0, 1], 1, 1, [1]),
        seconds=1.0,
        convergence=convergence,
        quantization=quantization,
        overhead=overheads,
        inference=inference,
        claims=judge(convergence, quantization, overheads),
    )
