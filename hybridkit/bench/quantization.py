"""What quantisation costs: output error against the fp32 twin, bytes, accuracy.

error = ||logits(packed) - logits(fp32 twin)||^2 / ||logits(fp32 twin)||^2 on the test data.

The fp32 twin of a run is the same arm, seed, learning rate and number of steps in full precision: it starts
from the same weights. AdamW's rate is the one that was best in ternary training. Without training, the twin
is the AdamW network that was quantised; the method is the best of those tried, with activations in full
precision, and it is chosen on the same test data: both favour it. Two networks that were trained apart differ
by more than rounding, so the error of a trained one contains everything that quantised training changed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hybridkit.bench.pool import Runs, Tick
from hybridkit.bench.runs import BASELINE, HYBRID, Packed, PackedSizes, Precision, RunRecord, RunSpec
from hybridkit.bench.statistics import Interval, bootstrap_median, relative_error

LOW_BITS: Final[tuple[Precision, ...]] = ("ternary", "1-bit")
TRAINED: Final = (BASELINE, HYBRID)


@dataclass(frozen=True, slots=True)
class ErrorResult:
    """One way to a packed network. `method` is an arm's name, or a quantizer's after training.

    less_than_adamw, less_than_afterwards: 1 - (this error / the error of AdamW's quantised training, or of
    the best method without training), paired by seed; only for the hybrid arm.
    """

    precision: Precision
    method: str
    trained: bool
    error: Interval
    test_metric: Interval
    fp32_test_metric: Interval  # of the twin
    less_than_adamw: Interval | None = None
    less_than_afterwards: Interval | None = None


@dataclass(frozen=True, slots=True)
class SizeResult:
    """Bytes of the hybrid network's packed file, and how many times smaller than fp32."""

    precision: Precision
    codec: str
    sizes: PackedSizes
    whole_file: float
    layers: float


@dataclass(frozen=True, slots=True)
class QuantizationResult:
    """Errors of all ways to a packed network, and the sizes of the files. `best`: method by precision."""

    task: str
    metric: str
    seeds: list[int]
    epochs: int
    best_afterwards: dict[str, str]
    errors: list[ErrorResult]
    sizes: list[SizeResult]


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """What is to be compared. lr: AdamW's learning rate, of the quantised runs and of their twins alike."""

    task: str
    seeds: Sequence[int]
    epochs: int
    lr: float

    def run(self, arm: str, precision: Precision, seed: int) -> RunSpec:
        """One arm's run; the hybrid arm has the default rate."""
        lr = self.lr if arm == BASELINE else None
        return RunSpec(self.task, arm, precision, seed, self.epochs, lr)

    def runs(self) -> list[RunSpec]:
        """The quantised runs and their fp32 twins."""
        precisions: tuple[Precision, ...] = ("fp32", *LOW_BITS)
        return [
            self.run(arm, precision, seed)
            for seed in self.seeds
            for precision in precisions
            for arm in TRAINED
        ]


def measure_quantization(
    plan: QuantizationPlan, runs: Runs[RunSpec, RunRecord], tick: Tick
) -> QuantizationResult:
    """Run what is missing, and compare."""
    records = runs.get(plan.runs(), tick)
    metric = next(iter(records.values())).metric

    def of(arm: str, precision: Precision) -> list[RunRecord]:
        return [records[plan.run(arm, precision, seed)] for seed in plan.seeds]

    twins = {arm: of(arm, "fp32") for arm in TRAINED}
    errors: list[ErrorResult] = []
    sizes: list[SizeResult] = []
    best: dict[str, str] = {}
    for precision in LOW_BITS:
        after = _afterwards(precision, twins[BASELINE])
        best[precision] = min(after, key=lambda method: statistics.median(_errors(*after[method])))
        trained = {arm: _as_trained(of(arm, precision), twins[arm], precision) for arm in TRAINED}
        for arm, (packed, twin) in trained.items():
            rivals = None
            if arm == HYBRID:
                rivals = _errors(*trained[BASELINE]), _errors(*after[best[precision]])
            errors.append(_result(precision, arm, packed, twin, metric, trained=True, rivals=rivals))
        for method, (packed, twin) in after.items():
            errors.append(_result(precision, method, packed, twin, metric, trained=False))
        sizes += _sizes(precision, trained[HYBRID][0][0])
    return QuantizationResult(plan.task, metric, list(plan.seeds), plan.epochs, best, errors, sizes)


Compared = tuple[list[Packed], list[RunRecord]]


def _as_trained(records: list[RunRecord], twins: list[RunRecord], precision: Precision) -> Compared:
    return [r.packed[precision][0] for r in records], twins


def _afterwards(precision: Precision, twins: list[RunRecord]) -> dict[str, Compared]:
    by_seed = [r.packed[precision] for r in twins]
    return {at[0].method: (list(at), twins) for at in zip(*by_seed, strict=True)}


def _errors(packed: list[Packed], twins: list[RunRecord]) -> list[float]:
    return [relative_error(p.logits, t.logits) for p, t in zip(packed, twins, strict=True)]


def _less(own: Sequence[float], rival: Sequence[float]) -> Interval:
    return bootstrap_median([1 - o / r for o, r in zip(own, rival, strict=True)])


def _result(
    precision: Precision,
    method: str,
    packed: list[Packed],
    twins: list[RunRecord],
    metric: str,
    *,
    trained: bool,
    rivals: tuple[list[float], list[float]] | None = None,
) -> ErrorResult:
    errors = _errors(packed, twins)
    return ErrorResult(
        precision=precision,
        method=method,
        trained=trained,
        error=bootstrap_median(errors),
        test_metric=bootstrap_median([p.test[metric] for p in packed]),
        fp32_test_metric=bootstrap_median([t.test[metric] for t in twins]),
        less_than_adamw=_less(errors, rivals[0]) if rivals else None,
        less_than_afterwards=_less(errors, rivals[1]) if rivals else None,
    )


def _sizes(precision: Precision, packed: Packed) -> list[SizeResult]:
    return [
        SizeResult(precision, codec, s, s.fp32_bytes / s.file_bytes, s.layers_fp32_bytes / s.layers_bytes)
        for codec, s in packed.sizes.items()
    ]
