"""One tiny bench for all tests that look at results: 2 seeds, 1 epoch, in this process."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from hybridkit.bench.claims import judge
from hybridkit.bench.convergence.findings import findings
from hybridkit.bench.convergence.methods import METHODS, OURS, TUNED
from hybridkit.bench.convergence.plan import small
from hybridkit.bench.convergence.run import gather
from hybridkit.bench.convergence.settings import Setting
from hybridkit.bench.convergence.summary import summarise
from hybridkit.bench.convergence.trials import Trial, run
from hybridkit.bench.inference import measure_inference
from hybridkit.bench.latency import Effort
from hybridkit.bench.machine import this_machine
from hybridkit.bench.overhead import OverheadSpec, measure_overhead
from hybridkit.bench.pool import Runs
from hybridkit.bench.quantization import QuantizationPlan, measure_quantization, measure_quantized
from hybridkit.bench.results import BenchResults, Settings

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
def quantized(converged):
    """plan, runs, quantisation result."""
    ternary, full = converged[0].settings
    plan = QuantizationPlan(full, (0, 1), 1, converged[2][ternary, TUNED])
    runs = Runs(measure_quantized, None)
    return plan, runs, measure_quantization(plan, runs, _ignore)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A ternary network of digits as ONNX."""
    from hybridkit.bench.exported import export_trained

    path = tmp_path_factory.mktemp("exported") / "digits.onnx"
    export_trained(Trial(Setting("digits", "ternary", 40, 32), METHODS[OURS], 0), str(path))
    return path


@pytest.fixture(scope="session")
def inference(exported):
    """The inference bench of `exported`."""
    return measure_inference(exported, threads=(1,), batches=(1, 3), effort=LEAST)


@pytest.fixture(scope="session")
def results(converged, quantized, inference):
    """A whole result document."""
    convergence, quantization = converged[-1], quantized[-1]
    overheads = [measure_overhead(OverheadSpec(Setting(TASK, "ternary", 5, 32), 2))]
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
