"""One tiny bench for all tests that look at results: 2 seeds, 1 epoch, in this process."""

from __future__ import annotations

import pytest

from hybridkit.bench.claims import judge
from hybridkit.bench.convergence import Plan, compare, tune
from hybridkit.bench.inference import measure_inference
from hybridkit.bench.latency import Effort
from hybridkit.bench.machine import this_machine
from hybridkit.bench.overhead import OverheadSpec, measure_overhead
from hybridkit.bench.pool import Runs
from hybridkit.bench.quantization import measure_quantization
from hybridkit.bench.results import BenchResults, Settings
from hybridkit.bench.runs import HYBRID, RunSpec, measure_run

TASK = "bench_tiny_task:tiny"
LEAST = Effort(rounds=1, seconds=0.001)


def _ignore() -> None:
    pass


@pytest.fixture(scope="session")
def trained():
    """plan, runs, chosen learning rates, convergence result, quantisation result."""
    plan = Plan(TASK, (0, 1), 1, (1e-3, 3e-3))
    runs = Runs(measure_run, None)
    rates, tuning = tune(plan, runs, _ignore)
    convergence = compare(plan, runs, rates, tuning, _ignore)
    quantization = measure_quantization(plan, runs, rates, _ignore)
    return plan, runs, rates, convergence, quantization


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
def results(trained, inference):
    """A whole result document."""
    *_, convergence, quantization = trained
    overheads = [measure_overhead(OverheadSpec(TASK, "ternary", 2))]
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
