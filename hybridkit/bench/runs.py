"""One measured training run: what is run, what is kept of it. Runs are made in memory; no files.

Both ARMS start from the same weights and take the same data and steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from torch import nn

    from hybridkit.tasks.protocol import Task
    from hybridkit.training.config import TrainConfig
    from hybridkit.training.trainer import Trainer

Precision = Literal["fp32", "ternary", "1-bit"]
BASELINE: Final = "adamw"
HYBRID: Final = "hybrid"
ARMS: Final[dict[str, dict[str, Any]]] = {BASELINE: {}, HYBRID: {"hybrid": True}}
QUANTISED: Final[dict[Precision, dict[str, Any]]] = {
    "fp32": {},
    "ternary": {"ternary": True, "qat": True},
    "1-bit": {"qat": True},
}
# Methods without training, by the precision they reach.
AFTERWARDS: Final[dict[Precision, tuple[str, ...]]] = {
    "ternary": ("ternary-absmean", "ternary-mse"),
    "1-bit": ("binary",),
}
CODECS: Final[dict[Precision, tuple[str, ...]]] = {"ternary": ("two-bit", "base3"), "1-bit": ("one-bit",)}


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A run. Equal specifications give equal runs, timings aside. `lr` None: the default of `train`."""

    task: str
    arm: str
    precision: Precision
    seed: int
    epochs: int
    lr: float | None = None

    def config(self) -> TrainConfig:
        """The run's configuration, on one thread."""
        from hybridkit.training.config import resolve

        flags = {**ARMS[self.arm], **QUANTISED[self.precision]}
        return resolve(task=self.task, seed=self.seed, epochs=self.epochs, lr=self.lr, threads=1, **flags)


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed network: bytes by codec, test metrics, logits on the test data."""

    method: str
    sizes: dict[str, PackedSizes]
    test: dict[str, float]
    logits: Any  # float32 [samples, ...]


@dataclass(frozen=True, slots=True)
class PackedSizes:
    """Bytes of a packed file, of its fp32 twin, and of the quantised layers alone."""

    file_bytes: int
    fp32_bytes: int
    layers_bytes: int
    layers_fp32_bytes: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What came of a run.

    test: metrics on the test data. metric: the key of it that a person looks at first. initial: a hash of the
    initial weights. logits: of the trained network on the test data, float32. packed: the network as it
    trained, under quantisation; in full precision, what each method of AFTERWARDS makes of it.
    """

    test: dict[str, float]
    metric: str
    initial: str
    logits: Any
    packed: dict[Precision, list[Packed]]


def measure_run(spec: RunSpec) -> RunRecord:
    """Train as `spec` says and measure. Raises DivergedError where the loss is not finite."""
    from hybridkit.training.trainer import Trainer

    trainer = Trainer.seeded(spec.config())
    initial = _hash(trainer.model)
    while not trainer.done:
        trainer.step()
    return RunRecord(
        test=trainer.evaluate("test"),
        metric=trainer.task.metric,
        initial=initial,
        logits=_logits(trainer.task, trainer.model),
        packed=_packed(trainer, spec.precision),
    )


def _packed(trainer: Trainer, precision: Precision) -> dict[Precision, list[Packed]]:
    from hybridkit.quant.convert import convert
    from hybridkit.quant.post_training import quantize

    task, model = trainer.task, trainer.model
    if precision != "fp32":
        made = {codec: convert(model, codec=codec) for codec in CODECS[precision]}
        return {precision: [_measure_packed(task, model, "as trained", made)]}
    found: dict[Precision, list[Packed]] = {}
    for reached, methods in AFTERWARDS.items():
        found[reached] = [
            _measure_packed(
                task,
                model,
                method,
                {codec: quantize(model, quantizer=method, codec=codec).packed for codec in CODECS[reached]},
            )
            for method in methods
        ]
    return found


def _measure_packed(task: Task, model: nn.Module, method: str, made: dict[str, Any]) -> Packed:
    """One packed network; codecs hold the same weights, so that the first one computes for all."""
    from hybridkit.training.evaluation import evaluate
    from hybridkit.training.packed import packed_twin

    twin = packed_twin(model, next(iter(made.values())))
    sizes = {}
    for codec, packed in made.items():
        s = packed.sizes()
        sizes[codec] = PackedSizes(s.file_bytes, s.fp32_bytes, s.layers_bytes, s.layers_fp32_bytes)
    test = evaluate(twin, task, task.splits().test, batch_size=256)
    return Packed(method, sizes, test, _logits(task, twin))


def _logits(task: Task, model: nn.Module) -> Any:
    from hybridkit.training.evaluation import outputs

    return outputs(model, task, task.splits().test, batch_size=256).float().numpy()


def _hash(model: nn.Module) -> str:
    """SHA-256 of the weights that a full-precision and a quantised network have in common."""
    import hashlib

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
