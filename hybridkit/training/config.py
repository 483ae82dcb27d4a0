"""The resolved configuration of a run, and how loosely given flags become one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from hybridkit.errors import FileError, UsageError
from hybridkit.hookspecs import KINDS, Kind
from hybridkit.options import nearest
from hybridkit.quant.config import QuantConfig
from hybridkit.registry import registry

DEFAULT_EPOCHS = 20
HYBRID_DEFAULTS = {
    "optimizer": "steepest",
    "lr_controller": "aux-nn",
    "clusterer": "none",  # balanced batches cost accuracy wherever they were measured
    "constraint": "l2",
}
HYBRID_RAMP = 0.8

Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that decides what a run does. Equal configurations give equal runs on one machine.

    Each field is validated on construction (UsageError). `quantizer` is the one that trains under `qat`, or
    the one applied afterwards where `ternary` stands alone; None: full precision. `lr_controller`,
    `clusterer` and `constraint` are None where that part of the hybrid optimisation is off. `options` holds
    the options of strategies, by kind and option name.
    """

    task: str = "digits"
    model: str | None = None  # a name from the task, or package.module:factory; None: the task's first
    data_dir: str | None = None
    epochs: Count | None = DEFAULT_EPOCHS  # None: until max_steps
    max_steps: Count | None = None
    batch_size: Count = 32
    lr: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 1e-5
    momentum: Annotated[float, Ge(0)] = 0.9  # SGD's momentum, or Adam's beta1
    seed: Annotated[int, Ge(0), Le(2**63 - 1)] = 0
    optimizer: str = "adamw"

    hybrid: bool = False
    lr_controller: str | None = None
    clusterer: str | None = None
    constraint: str | None = None
    sampler: Literal["shuffle", "balanced", "per-cluster"] = "shuffle"
    data_clusters: Count = 8
    param_clusters: Count = 4
    initial_trust_radius: Annotated[float, Gt(0)] = 0.01

    ternary: bool = False
    qat: bool = False
    quantizer: str | None = None
    activations: Literal["int8", "float"] = "int8"
    quantize_all: bool = False
    target_bits: Annotated[float, Ge(1), Le(8)] | None = None
    ramp: Annotated[float, Ge(0), Lt(1)] = 0.0  # share of the run from full precision to quantised weights

    init_from: str | None = None
    teacher: str | None = None
    temperature: Annotated[float, Gt(0)] = 2.0
    alpha: Annotated[float, Ge(0), Le(1)] = 0.5  # share of the task's own loss under a teacher

    eval_every: Count | None = None  # steps; None: once per epoch
    checkpoint_every: Count = 100  # steps; an epoch's end counts too
    keep_checkpoints: Count = 3
    threads: Count | None = None
    device: str = "cpu"
    options: dict[Kind, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _check(f.name, getattr(self, f.name))
        if self.epochs is None and self.max_steps is None:
            raise UsageError("a run needs an end: give epochs or max_steps")
        if self.qat and self.quantizer is None and self.target_bits is None:
            raise UsageError("qat needs a quantizer")

    @property
    def uses_hybrid_optimizer(self) -> bool:
        """Whether a controller or a constraint is on."""
        return self.lr_controller is not None or self.constraint is not None

    @property
    def quantization(self) -> QuantConfig:
        """How the run quantises: in training under `qat`, afterwards under `ternary` alone."""
        name = self.quantizer or ("ternary-absmean" if self.qat else "ternary-mse")
        options = self.strategy_options("quantizer")
        return QuantConfig(
            weights={"quantizer": name, **options} if options else name,
            activations=self.activations,
            quantize_all=self.quantize_all,
        )

    def total_steps(self, steps_per_epoch: int) -> int:
        """How many steps the run takes."""
        limits = [self.max_steps, self.epochs and self.epochs * steps_per_epoch]
        return min(limit for limit in limits if limit is not None)

    def strategy_options(self, kind: Kind) -> dict[str, Any]:
        """The options given for the strategy of one kind."""
        return dict(self.options.get(kind, {}))

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `from_json` turns back into an equal configuration."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> TrainConfig:
        """The configuration that `to_json` wrote. Raises FileError where it is something else."""
        if not isinstance(value, Mapping):
            raise FileError("the run's configuration is not a table")
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = [str(name) for name in value if name not in known]
        if unknown:
            raise FileError(
                f"the run's configuration has an unknown entry {unknown[0]!r}; {nearest(unknown[0], known)}"
            )
        try:
            return cls(**value)
        except UsageError as error:
            raise FileError(f"the run's configuration is damaged: {error}") from None


def resolve(
    *,
    hybrid: bool = False,
    ternary: bool = False,
    qat: bool = False,
    quantizer: str | None = None,
    learnable_scale: bool = False,
    activations: str | None = None,
    options: Mapping[Kind, Mapping[str, Any]] | None = None,
    **flags: Any,
) -> TrainConfig:
    """The configuration that a set of flags means; a flag that is None was not given.

    `flags` are other fields of `TrainConfig`. Raises UsageError where flags contradict each other, a name
    does not exist, or a value is out of range.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if given.get("max_steps") and "epochs" not in given:
        given["epochs"] = None
    if hybrid:
        asked = "data_clusters" in given or given.get("sampler", "shuffle") != "shuffle"
        given = {**HYBRID_DEFAULTS, **({"clusterer": "kmeans"} if asked else {}), **given}
        if qat:
            given.setdefault("ramp", HYBRID_RAMP)
    _reject_idle(given, qat=qat, ternary=ternary)
    quantizer = _choose_quantizer(ternary, qat, quantizer, learnable_scale, given.get("target_bits"))
    if given.get("clusterer", "none") != "none":
        given.setdefault("sampler", "balanced")
    config = TrainConfig(
        hybrid=hybrid,
        ternary=ternary,
        qat=qat,
        quantizer=quantizer,
        activations=activations or ("int8" if qat else "float"),  # type: ignore[arg-type]
        options={kind: dict(table) for kind, table in (options or {}).items() if table},
        **given,
    )
    _check_strategies(config)
    return config


def named_targets(config: TrainConfig) -> dict[str, str]:
    """The fields that name Python code (`package.module:attribute`) rather than a registered strategy."""
    found = {}
    for name in (*KINDS, "model", "teacher"):
        value = getattr(config, name, None)
        if value is not None and ":" in value and not _is_registered(name, value):
            found[name] = value
    return found


def _is_registered(kind: str, name: str) -> bool:
    if kind not in KINDS:
        return False
    try:
        registry().find(kind, name)
    except UsageError:
        return False
    return True


def _choose_quantizer(
    ternary: bool, qat: bool, quantizer: str | None, learnable_scale: bool, target_bits: float | None
) -> str | None:
    if learnable_scale:
        if not (ternary and qat):
            raise UsageError("--learnable-scale trains the scale of ternary weights: add --ternary --qat")
        if quantizer not in (None, "ternary-learned"):
            raise UsageError(f"--learnable-scale means --quantizer ternary-learned; drop it or {quantizer!r}")
        return "ternary-learned"
    if target_bits is not None:
        if not qat or ternary or quantizer:
            raise UsageError("--target-bits chooses the bits of every layer: use it with --qat alone")
        return None
    if not (ternary or qat):
        if quantizer:
            raise UsageError("--quantizer needs --qat, or --ternary to quantise after training")
        return None
    if quantizer is None:
        if qat:
            return "ternary-absmean" if ternary else "binary"
        return "ternary-mse"
    return quantizer


def _reject_idle(given: Mapping[str, Any], *, qat: bool, ternary: bool) -> None:
    """A flag that would change nothing is a mistake worth a line."""
    if given.get("quantize_all") and not (qat or ternary):
        raise UsageError("--quantize-all needs --qat or --ternary")
    if given.get("ramp") and not qat:
        raise UsageError("--ramp needs --qat")
    if "teacher" not in given and ("temperature" in given or "alpha" in given):
        raise UsageError("--temperature and --alpha need --teacher")
    if given.get("sampler") == "per-cluster" and given.get("clusterer", "none") == "none":
        raise UsageError("--sampler per-cluster needs a clusterer")


def _check_strategies(config: TrainConfig) -> None:
    for kind in KINDS:
        name = getattr(config, kind, None)
        if name is not None:
            registry().load(kind, name)
    for kind in config.options:
        if getattr(config, kind, None) is None:
            raise UsageError(f"options were set for the {kind.replace('_', '-')}, but the run has none")
    if config.ternary and config.quantizer is not None:
        from hybridkit.quant.plan import make_quantizer
        from hybridkit.quant.protocol import is_ternary

        made, _ = make_quantizer(config.quantization.weights)
        if made is None or not is_ternary(made):
            raise UsageError(
                f"--ternary with --quantizer {config.quantizer}, which is not ternary; drop one of them"
            )


def _check(name: str, value: Any) -> None:
    from pydantic import ValidationError

    try:
        _validator(name).validate_python(value, strict=True)
    except ValidationError as error:
        raise UsageError(f"{name.replace('_', '-')} is {value!r}: {error.errors()[0]['msg']}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name.replace('_', '-')} is {value!r}: it must be finite")


@functools.cache
def _validator(name: str) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(get_type_hints(TrainConfig, include_extras=True)[name])
