"""The resolved configuration of a run, and how loosely given flags become one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from hybridkit.errors import FileError, UsageError
from hybridkit.hookspecs import KINDS, Kind
from hybridkit.options import Flag, nearest
from hybridkit.pretrained import PREFIX, is_pretrained
from hybridkit.quant.config import FP32, QuantConfig, parse_granularity, parse_layers
from hybridkit.training.distillation.terms import parse_layer_map, parse_terms

HYBRID_DEFAULTS = {
    "optimizer": "steepest",
    "lr_controller": "relative-step",
    "clusterer": "none",  # balanced batches cost accuracy wherever they were measured
    "constraint": "l2",
}
# Of a pretrained network: relative steps, made for training from scratch, would undo what it knows.
HYBRID_FINE_TUNING = {**HYBRID_DEFAULTS, "optimizer": "adamw", "lr_controller": "cosine"}
HYBRID_CLUSTERER = "kmeans"  # where clusters are asked for
HYBRID_RAMP = 0.8


WHAT, HOW, HYBRID, QUANT, START, RUN = (
    "What is trained",
    "Optimisation",
    "Hybrid optimisation",
    "Quantisation",
    "Starting points and teachers",
    "The run",
)
Count = Annotated[int, Ge(1)]
Name = str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that decides what a run does. Equal configurations give equal runs on one machine.

    This is the one declaration of a run's options: defaults, limits and words. `hybridkit train` makes its
    flags from the fields that have a `Flag`. Each field is validated on construction (UsageError).
    `quantizer` is the one that trains under `qat`, or the one applied afterwards where `ternary` stands
    alone; None: full precision. `lr_controller`, `clusterer` and `constraint` are None where that part of
    the hybrid optimisation is off. `options` holds the options of strategies, by kind and option name.
    """

    task: Annotated[str, Flag(WHAT, "{default} (default), a plugin's, or package.module:attr.", "NAME")] = (
        "digits"
    )
    # None: the task's first
    model: Annotated[Name, Flag(WHAT, "One of the task's, or package.module:factory.", "NAME")] = None
    data_dir: Annotated[Name, Flag(WHAT, "Where the task's data are.", "PATH")] = None

    # None: until max_steps
    epochs: Annotated[
        Count | None, Flag(HOW, "Passes over the training data ({default}, or until --max-steps).")
    ] = 20
    max_steps: Annotated[Count | None, Flag(HOW, "Stop after so many steps.")] = None
    batch_size: Annotated[Count, Flag(HOW, "Samples per step ({default}).")] = 32
    lr: Annotated[float, Gt(0), Flag(HOW, "Base learning rate ({default}).")] = 1e-3
    weight_decay: Annotated[float, Ge(0), Flag(HOW, "Weight decay ({default}).")] = 1e-5
    momentum: Annotated[float, Ge(0), Flag(HOW, "SGD's momentum or Adam's beta1 ({default}).")] = 0.9
    optimizer: Annotated[
        str,
        Flag(
            HOW,
            f"{{default}} (with --hybrid: {HYBRID_DEFAULTS['optimizer']}), muon, sgd, module:attr.",
            "NAME",
        ),
    ] = "adamw"
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        Flag(HOW, "{default} (default), or torch's autocast; quantised layers stay exact.", "fp32|bf16|fp16"),
    ] = "fp32"
    accumulate: Annotated[Count, Flag(HOW, "Batches per step ({default}).")] = 1
    clip_norm: Annotated[
        Annotated[float, Gt(0)] | None, Flag(HOW, "Shorten gradients that are longer than this.")
    ] = None

    hybrid: Annotated[bool, Flag(HYBRID, "Clusters, learning-rate controller and trust region.")] = False
    lr_controller: Annotated[
        Name,
        Flag(HYBRID, f"Who sets the learning-rate multiplier ({HYBRID_DEFAULTS['lr_controller']}).", "NAME"),
    ] = None
    clusterer: Annotated[
        Name,
        Flag(
            HYBRID,
            f"How the data are clustered ({HYBRID_DEFAULTS['clusterer']}; {HYBRID_CLUSTERER}).",
            "NAME",
        ),
    ] = None
    constraint: Annotated[
        Name, Flag(HYBRID, f"The trust region's shape ({HYBRID_DEFAULTS['constraint']}).", "NAME")
    ] = None
    sampler: Annotated[
        Literal["shuffle", "balanced", "per-cluster"],
        Flag(HYBRID, "balanced (with clusters), per-cluster or {default}.", "NAME"),
    ] = "shuffle"
    data_clusters: Annotated[Count, Flag(HYBRID, "Clusters of the data ({default}).")] = 8
    param_clusters: Annotated[Count, Flag(HYBRID, "Clusters of the parameters ({default}).")] = 4
    initial_trust_radius: Annotated[
        float, Gt(0), Flag(HYBRID, "Trust radius of the first step ({default}).")
    ] = 0.01

    ternary: Annotated[bool, Flag(QUANT, "Ternary weights: after training, or in training with --qat.")] = (
        False
    )
    qat: Annotated[bool, Flag(QUANT, "Train quantised from the first step; 1-bit without --ternary.")] = False
    quantizer: Annotated[Name, Flag(QUANT, "Replaces the default quantizer.", "NAME")] = None
    activations: Annotated[
        Literal["int8", "float"], Flag(QUANT, "{default} by default under --qat.", "int8|float")
    ] = "int8"
    quantize_all: Annotated[bool, Flag(QUANT, "The last Linear and embeddings too.")] = False
    target_bits: Annotated[
        Annotated[float, Ge(1), Le(8)] | None,
        Flag(QUANT, "Mean bits per weight; layers get what they need."),
    ] = None
    ramp: Annotated[
        float,
        Ge(0),
        Lt(1),
        Flag(
            QUANT,
            "Share of the run from full-precision to quantised weights "
            f"({{default}}; {HYBRID_RAMP} with --hybrid and for quantizers that anneal).",
        ),
    ] = 0.0

    layer: Annotated[
        list[str],
        Flag(
            QUANT,
            "Another quantizer, or fp32, for layers, as 'features.0=fp32'; repeatable.",
            "PATTERN=NAME",
        ),
    ] = field(default_factory=list)
    granularity: Annotated[
        str, Flag(QUANT, "What has a scale: tensor, {default} (default), group:SIZE.", "NAME")
    ] = "channel"
    insert_norms: Annotated[
        bool, Flag(QUANT, "A norm before each quantised linear layer that has none; changes the function.")
    ] = False

    no_latent_decay: Annotated[bool, Flag(QUANT, "No weight decay on weights that are quantised.")] = False
    scale_lr: Annotated[
        Annotated[float, Gt(0)] | None, Flag(QUANT, "Rate of learned scales, times the learning rate (1).")
    ] = None
    trainable: Annotated[
        Name,
        Flag(QUANT, "Freeze codes; train these: scales,norms,biases,adapters[:RANK],rest.", "WHAT"),
    ] = None

    init_from: Annotated[Name, Flag(START, "Start from these weights.", "RUN|FILE|MODULE:ATTR")] = None
    teacher: Annotated[
        Name, Flag(START, "Learn from this network too; self: as it starts.", "RUN|FILE|MODULE:ATTR|self")
    ] = None
    temperature: Annotated[float, Gt(0), Flag(START, "Temperature of the distillation ({default}).")] = 2.0
    alpha: Annotated[
        float, Ge(0), Le(1), Flag(START, "Share of the task's own loss beside the teacher's ({default}).")
    ] = 0.5
    # None: logits, or of data without labels hidden states and embeddings
    distil: Annotated[
        Name,
        Flag(
            START,
            "What is learned of it: logits (default), hidden, attention, embedding; hidden:2 weighs.",
            "TERMS",
        ),
    ] = None
    layer_map: Annotated[
        Name, Flag(START, "Which blocks go together, as in 0:1,1:3 (student:teacher; evenly spread).", "MAP")
    ] = None
    teacher_dtype: Annotated[
        Literal["fp32", "bf16", "fp16"],
        Flag(START, "What the teacher computes in ({default}).", "fp32|bf16|fp16"),
    ] = "fp32"
    progressive: Annotated[
        bool, Flag(START, "Half of the run block by block, with the activations of one, then end to end.")
    ] = False
    trust_remote_code: Annotated[
        bool, Flag(START, "Run code that lies in a pretrained network's own folder.")
    ] = False

    seed: Annotated[int, Ge(0), Le(2**63 - 1), Flag(RUN, "Seed of everything random ({default}).")] = 0
    threads: Annotated[
        Annotated[int, Ge(1), Le(4096)] | None, Flag(RUN, "CPU threads (OMP_NUM_THREADS, else all).")
    ] = None
    device: Annotated[str, Flag(RUN, "{default} (default), or cuda.")] = "cpu"
    # None: once per epoch
    eval_every: Annotated[Count | None, Flag(RUN, "Steps between evaluations (an epoch).")] = None
    checkpoint_activations: Annotated[
        bool, Flag(RUN, "Less memory, more time: activations of blocks are computed again.")
    ] = False
    compile: Annotated[bool, Flag(RUN, "Compile the network (torch.compile).")] = False
    workers: Annotated[int, Ge(0), Le(1024), Flag(RUN, "Processes that read data ahead ({default}).")] = 0
    shard: Annotated[bool, Flag(RUN, "Under torchrun: FSDP2 in place of DDP.")] = False
    processes: Count = 1  # that the run began with; each had batch_size samples of a batch
    checkpoint_every: Count = 100  # steps; an epoch's end counts too
    keep_checkpoints: Count = 3
    sink: Annotated[
        list[str],
        Flag(RUN, "Log to tensorboard, wandb, mlflow or a plugin's too; repeatable, or with commas.", "NAME"),
    ] = field(default_factory=list)
    options: dict[Kind, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _check(f.name, getattr(self, f.name))
        if self.epochs is None and self.max_steps is None:
            raise UsageError("a run needs an end: give epochs or max_steps")
        parse_granularity(self.granularity)
        parse_layers(self.layer)
        if self.trainable is not None:
            from hybridkit.quant.frozen import parse_trainable

            parse_trainable(self.trainable)
            if self.ramp:
                raise UsageError("--trainable freezes the codes, to which no ramp leads; drop --ramp")
        if self.qat and self.quantizer is None and self.target_bits is None:
            raise UsageError("qat needs a quantizer")
        if self.distil is not None:
            parse_terms(self.distil)
        if self.layer_map is not None:
            parse_layer_map(self.layer_map)

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
            granularity=self.granularity,
            activations=self.activations,
            quantize_all=self.quantize_all,
            insert_norms=self.insert_norms,
            layers=parse_layers(self.layer),
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
        trained = is_pretrained(str(given.get("model") or ""))
        defaults = HYBRID_FINE_TUNING if trained else HYBRID_DEFAULTS
        given = {**defaults, **({"clusterer": HYBRID_CLUSTERER} if asked else {}), **given}
        if qat and "trainable" not in given:
            given.setdefault("ramp", HYBRID_RAMP)
    given["sink"], chosen = _sinks(given.get("sink", ()), options or {})
    _reject_idle(given, qat=qat, ternary=ternary)
    if "trainable" in given and ternary and not learnable_scale:
        quantizer = quantizer or "ternary-mse"  # codes that nothing will move: those of least error
    quantizer = _choose_quantizer(ternary, qat, quantizer, learnable_scale, given.get("target_bits"))
    if qat and quantizer is not None and "trainable" not in given and _anneals(quantizer):
        given.setdefault("ramp", HYBRID_RAMP)
    if given.get("clusterer", "none") != "none":
        given.setdefault("sampler", "balanced")
    config = TrainConfig(
        hybrid=hybrid,
        ternary=ternary,
        qat=qat,
        quantizer=quantizer,
        activations=activations or ("int8" if qat else "float"),  # type: ignore[arg-type]
        options={kind: dict(table) for kind, table in chosen.items() if table},
        **given,
    )
    _check_strategies(config)
    return config


def _sinks(
    given: str | Iterable[str], options: Mapping[Kind, Mapping[str, Any]]
) -> tuple[list[str], Mapping[Kind, Mapping[str, Any]]]:
    """The metric sinks, and all options with those of the sinks by name, checked."""
    from hybridkit.sinks.names import sink_names, sink_options

    names = sink_names(given)
    return names, {**options, "metric_sink": sink_options(names, options.get("metric_sink", {}))}


def with_sinks(config: TrainConfig, given: Iterable[str] | None) -> TrainConfig:
    """`config` with other metric sinks, where some are given; `none` stands for no sink.

    Options of sinks that are no more are dropped. Raises UsageError for unknown names.
    """
    if given is None:
        return config
    from hybridkit.sinks.names import sink_names, sink_options

    names = sink_names(given)
    kept = {n: table for n, table in config.strategy_options("metric_sink").items() if n in names}
    options = {**config.options, "metric_sink": sink_options(names, kept)}
    return dataclasses.replace(config, sink=names, options={k: v for k, v in options.items() if v})


def named_targets(config: TrainConfig) -> dict[str, str]:
    """The fields that name Python code (`package.module:attribute`) rather than a registered strategy.

    An item of a list is `field[index]`.
    """
    found = {}
    for name in (*KINDS, "model", "teacher"):
        value = getattr(config, name, None)
        pretrained = name in ("model", "teacher") and str(value).startswith(PREFIX)
        if value is not None and ":" in value and not (pretrained or _is_registered(name, value)):
            found[name] = value
    for i, value in enumerate(config.sink):
        if ":" in value and not _is_registered("metric_sink", value):
            found[f"sink[{i}]"] = value
    for i, name in enumerate(map(str, parse_layers(config.layer).values())):
        if ":" in name and not _is_registered("quantizer", name):
            found[f"layer[{i}]"] = name
    return found


def _is_registered(kind: str, name: str) -> bool:
    from hybridkit.registry import registry

    if kind not in KINDS:
        return False
    try:
        registry().find(kind, name)
    except UsageError:
        return False
    return True


def _anneals(quantizer: str) -> bool:
    """Whether it comes to its codes along a ramp, without which it would be an ordinary one."""
    from hybridkit.quant.protocol import anneals
    from hybridkit.registry import registry

    return anneals(registry().load("quantizer", quantizer))


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
    if given.get("layer") and not (qat or ternary):
        raise UsageError("--layer needs --qat or --ternary")
    if given.get("layer") and "target_bits" in given:
        raise UsageError("--target-bits chooses the quantizer of every layer; drop --layer")
    if given.get("ramp") and not qat:
        raise UsageError("--ramp needs --qat")
    if given.get("insert_norms") and not qat:
        raise UsageError("--insert-norms needs --qat: the norms have to be trained")
    for name in ("no_latent_decay", "scale_lr", "trainable"):
        if given.get(name) and not qat:
            raise UsageError(f"--{name.replace('_', '-')} needs --qat")
    if given.get("granularity", "channel") != "channel":
        if not (qat or ternary):
            raise UsageError("--granularity needs --qat or --ternary")
        if "target_bits" in given:
            raise UsageError("--target-bits chooses the granularity of every layer; drop --granularity")
    if "teacher" not in given and ("temperature" in given or "alpha" in given):
        raise UsageError("--temperature and --alpha need --teacher")
    for name in ("distil", "layer_map", "teacher_dtype", "progressive"):
        if "teacher" not in given and given.get(name):
            raise UsageError(f"--{name.replace('_', '-')} needs --teacher; self is the network as it starts")
    if given.get("sampler") == "per-cluster" and given.get("clusterer", "none") == "none":
        raise UsageError("--sampler per-cluster needs a clusterer")


def _check_strategies(config: TrainConfig) -> None:
    from hybridkit.registry import registry  # not for --help, which needs the declaration alone

    for kind in KINDS:
        name = getattr(config, kind, None)
        if name is not None:
            registry().load(kind, name)
    for name in parse_layers(config.layer).values():
        if name != FP32:
            registry().load("quantizer", str(name))
    for kind in config.options:
        if kind != "metric_sink" and getattr(config, kind, None) is None:
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
        _validator(name).validate_python(value)
    except ValidationError as error:
        raise UsageError(f"{name.replace('_', '-')} is {value!r}: {error.errors()[0]['msg']}") from None


@functools.cache
def _validator(name: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    hint = get_type_hints(TrainConfig, include_extras=True)[name]
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))
