"""What a stored result is known by: its configuration, and the versions of the components that it used.

A component is a strategy, a task, a teacher, the trainer or the hybrid optimizer. It carries a version as its
attribute `version` (none: 1), which is raised when it gives other numbers than before, and is known by its
name and version wherever its code lies. Code of somebody else that carries no version is known by the text of
its module instead, so that nobody takes an old result for one of changed code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hybridkit.hookspecs import KINDS

if TYPE_CHECKING:
    from hybridkit.training.config import TrainConfig

# What a key leaves unsaid: values of the first stored results, whatever becomes of the defaults.
USUAL: Final[Mapping[str, Any]] = {
    "weight_decay": 1e-5,
    "momentum": 0.9,
    "optimizer": "adamw",
    "sampler": "shuffle",
    "data_clusters": 8,
    "param_clusters": 4,
    "initial_trust_radius": 0.01,
    "qat": False,
    "activations": "float",
    "quantize_all": False,
    "ramp": 0.0,
    "temperature": 2.0,
    "alpha": 0.5,
}
ALWAYS: Final = ("task", "batch_size", "max_steps", "lr", "seed")  # and what it says whatever it is
# Fields that decide no number of a trial. What --hybrid and --ternary mean is in the other fields.
IDLE: Final = frozenset(
    (
        *("epochs", "hybrid", "ternary", "eval_every", "checkpoint_every", "keep_checkpoints"),
        *("threads", "device", "sink"),
    )
)


def key(config: TrainConfig, **more: object) -> str:
    """The name of a run in a store: JSON of what `config` says, by which versions, and of `more`."""
    from hybridkit.optim.hybrid import HybridOptimizer
    from hybridkit.training.trainer import Trainer

    said: dict[str, Any] = {"torch": version("torch"), **more}
    default = type(config)()
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name in IDLE or (f.name not in ALWAYS and value == USUAL.get(f.name, getattr(default, f.name))):
            continue
        if isinstance(value, str) and f.name in (*KINDS, "teacher"):
            value = identity(f.name, value)
        said[f.name] = value
    for name, part in (("trainer", Trainer), ("hybrid optimizer", HybridOptimizer)):
        if version_of(part) != "1" and (part is Trainer or config.uses_hybrid_optimizer):
            said[name] = version_of(part)
    return json.dumps(said, sort_keys=True)


@cache
def identity(kind: str, spec: str) -> str:
    """`name`, or `name@version`, of a registered strategy; `:attribute@version` of package.module:attribute.

    Raises UsageError or HybridkitError where there is no such thing, or it does not load.
    """
    from hybridkit.errors import UsageError
    from hybridkit.registry import BUILTIN, import_target, registry

    name, own = f":{spec.rpartition(':')[2]}", spec.startswith("hybridkit.")
    target = registry().load(kind, spec) if kind in KINDS else import_target(spec)
    if kind in KINDS:
        try:
            entry = registry().find(kind, spec)
        except UsageError:  # package.module:attribute
            pass
        else:
            own = entry.distribution == BUILTIN
            name = entry.strategy.name if own else entry.qualified_name
    found = version_of(target, own=own)
    return name if own and found == "1" else f"{name}@{found}"


def version_of(target: Any, *, own: bool = True) -> str:
    """The version that `target` carries; none: 1 if it is ours (`own`), else a hash of its module's text."""
    carried = getattr(target, "version", None)
    if isinstance(carried, int | str):
        return str(carried)
    if own:
        return "1"
    code = target if inspect.isclass(target) or inspect.isroutine(target) else type(target)
    module = inspect.getmodule(code)
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes() if path else b"").hexdigest()[:12]
