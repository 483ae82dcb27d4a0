"""What quantisation costs: output error against the full-precision counterpart, bytes, accuracy.

squared relative error = ||logits(packed) - logits(counterpart)||^2 / ||logits(counterpart)||^2, on test data.

The counterpart of a run is the same method, seed, learning rate and number of steps in full precision: it
starts from the same weights. The baseline's rate is the one that was best in ternary training. Without
training, the counterpart is the baseline's network that was quantised; the method is the best of those tried,
with activations in full precision, and it is chosen on the same test data: both favour it. Two networks that
were trained apart differ by more than rounding, so the error of a trained one contains everything that
quantised training changed.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hybridkit.bench.convergence.identity import key
from hybridkit.bench.convergence.methods import METHODS, OURS, TUNED
from hybridkit.bench.convergence.settings import Precision, Setting
from hybridkit.bench.convergence.trials import Trial, trained
from hybridkit.bench.pool import Runs, Tick
from hybridkit.bench.statistics import Interval, bootstrap_median

if TYPE_CHECKING:
    from hybridkit.packing.model import PackedModel
    from hybridkit.training.trainer import Trainer

LOW_BITS: Final[tuple[Precision, ...]] = ("ternary", "3:4-sparse", "1-bit")
TRAINED: Final = (TUNED, OURS)
# Methods without training, by the precision they reach.
AFTERWARDS: Final[dict[Precision, tuple[str, ...]]] = {
    "ternary": ("ternary-absmean", "ternary-mse"),
    "3:4-sparse": ("ternary-sparse",),
    "1-bit": ("binary",),
}
CODECS: Final[dict[Precision, tuple[str, ...]]] = {
    "ternary": ("two-bit", "base3"),
    "3:4-sparse": ("sparse34",),
    "1-bit": ("one-bit",),
}


@dataclass(frozen=True, slots=True)
class PackedSizes:
    """Bytes of a packed file, of its fp32 counterpart, and of the quantised layers alone."""

    file_bytes: int
    fp32_bytes: int
    layers_bytes: int
    layers_fp32_bytes: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed network: bytes by codec, the task's metric on the test data, error against the counterpart.

    method: the quantizer after training; None: as it trained.
    """

    precision: Precision
    method: str | None
    sizes: dict[str, PackedSizes]
    test_metric: float
    error: float


@dataclass(frozen=True, slots=True)
class QuantizedRecord:
    """A full-precision network and what became of it. metric: the name of the task's."""

    metric: str
    test_metric: float
    packed: list[Packed]

    def by_method(self, precision: Precision) -> dict[str | None, Packed]:
        """The packed networks of one precision, by method."""
        return {p.method: p for p in self.packed if p.precision == precision}


@dataclass(frozen=True, slots=True)
class QuantizedTrial:
    """A full-precision trial, to be trained quantised, too; a rival is also quantised afterwards."""

    full: Trial

    def key(self) -> str:
        """Its name in the store."""
        return key(self.full.config(), measured="quantised")

    def quantized(self, precision: Precision) -> Trial:
        """The same in another precision."""
        setting = dataclasses.replace(self.full.setting, precision=precision)
        return dataclasses.replace(self.full, setting=setting)


def measure_quantized(trial: QuantizedTrial) -> QuantizedRecord:
    """Train and measure. Raises DivergedError where a loss is not finite."""
    from hybridkit.quant.convert import convert
    from hybridkit.quant.post_training import quantize

    full = trained(trial.full)
    packed = []
    for precision in LOW_BITS:
        own = trained(trial.quantized(precision))
        made = {codec: convert(own.model, codec=codec) for codec in CODECS[precision]}
        packed.append(_measured(full, own.model, precision, None, made))
        for method in () if trial.full.method.ours else AFTERWARDS[precision]:
            made = {
                codec: quantize(full.model, quantizer=method, codec=codec).packed
                for codec in CODECS[precision]
            }
            packed.append(_measured(full, full.model, precision, method, made))
    metric = full.task.metric
    return QuantizedRecord(metric, full.evaluate("test")[metric], packed)


def _measured(
    full: Trainer, model: Any, precision: Precision, method: str | None, made: dict[str, PackedModel]
) -> Packed:
    """One packed network; codecs hold the same weights, so that the first one computes for all."""
    from hybridkit.training.evaluation import compare
    from hybridkit.training.packed import packed_network

    network = packed_network(model, next(iter(made.values())))
    found = compare(full.model, network, full.task, full.task.splits().test, batch_size=256)
    sizes = {}
    for codec, each in made.items():
        s = each.sizes()
        sizes[codec] = PackedSizes(s.file_bytes, s.fp32_bytes, s.layers_bytes, s.layers_fp32_bytes)
    return Packed(precision, method, sizes, found.packed[full.task.metric], found.error)


@dataclass(frozen=True, slots=True)
class ErrorResult:
    """One way to a packed network. `method` is that of the training, or a quantizer's after it.

    less_than_adamw, less_than_afterwards: 1 - (this error / the error of the baseline's quantised training,
    or of the best method without training), paired by seed; only for our method.
    """

    precision: Precision
    method: str
    trained: bool
    error: Interval
    test_metric: Interval
    fp32_test_metric: Interval  # of the counterpart
    less_than_adamw: Interval | None = None
    less_than_afterwards: Interval | None = None


@dataclass(frozen=True, slots=True)
class SizeResult:
    """Bytes of our method's packed file, and how many times smaller than fp32."""

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
    """What is to be compared. full: in full precision. lr: the baseline's learning rate."""

    full: Setting
    seeds: Sequence[int]
    epochs: int
    lr: float

    def trial(self, method: str, seed: int) -> QuantizedTrial:
        """One method's; ours has the default rate."""
        lr = None if method == OURS else self.lr
        return QuantizedTrial(Trial(self.full, METHODS[method], seed, lr))

    def trials(self) -> list[QuantizedTrial]:
        """All of them."""
        return [self.trial(method, seed) for seed in self.seeds for method in TRAINED]


def measure_quantization(
    plan: QuantizationPlan, runs: Runs[QuantizedTrial, QuantizedRecord], tick: Tick
) -> QuantizationResult:
    """Run what is missing, and compare."""
    records = runs.get(plan.trials(), tick)
    of = {method: [records[plan.trial(method, seed)] for seed in plan.seeds] for method in TRAINED}
    errors: list[ErrorResult] = []
    sizes: list[SizeResult] = []
    best: dict[str, str] = {}
    for precision in LOW_BITS:
        trained = {method: [r.by_method(precision)[None] for r in of[method]] for method in TRAINED}
        after = {name: [r.by_method(precision)[name] for r in of[TUNED]] for name in AFTERWARDS[precision]}
        best[precision] = min(after, key=lambda name: statistics.median(_errors(after[name])))
        rivals = _errors(trained[TUNED]), _errors(after[best[precision]])
        for method, packed in trained.items():
            against = rivals if method == OURS else None
            errors.append(_result(method, packed, of[method], trained=True, rivals=against))
        for method, packed in after.items():
            errors.append(_result(method, packed, of[TUNED], trained=False))
        sizes += [
            SizeResult(precision, codec, s, s.fp32_bytes / s.file_bytes, s.layers_fp32_bytes / s.layers_bytes)
            for codec, s in trained[OURS][0].sizes.items()
        ]
    metric = of[OURS][0].metric
    return QuantizationResult(plan.full.task, metric, list(plan.seeds), plan.epochs, best, errors, sizes)


def _errors(packed: list[Packed]) -> list[float]:
    return [p.error for p in packed]


def _less(own: Sequence[float], rival: Sequence[float]) -> Interval:
    return bootstrap_median([1 - o / r for o, r in zip(own, rival, strict=True)])


def _result(
    method: str,
    packed: list[Packed],
    full: list[QuantizedRecord],
    *,
    trained: bool,
    rivals: tuple[list[float], list[float]] | None = None,
) -> ErrorResult:
    errors = _errors(packed)
    return ErrorResult(
        precision=packed[0].precision,
        method=method,
        trained=trained,
        error=bootstrap_median(errors),
        test_metric=bootstrap_median([p.test_metric for p in packed]),
        fp32_test_metric=bootstrap_median([record.test_metric for record in full]),
        less_than_adamw=_less(errors, rivals[0]) if rivals else None,
        less_than_afterwards=_less(errors, rivals[1]) if rivals else None,
    )
