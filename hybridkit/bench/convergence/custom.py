"""Anybody's method among the rivals: from the text of --method, or from a table of a file.

NAME=optimizer:torch.optim:NAdam,lr_controller:cosine,optimizer.momentum_decay=0.01

A value is the name of a strategy or package.module:attribute; KIND.OPTION=VALUE sets an option of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hybridkit.bench.convergence.methods import ADAM_GRID, METHODS, Method
from hybridkit.bench.convergence.settings import QUANTISED
from hybridkit.errors import UsageError
from hybridkit.options import nearest
from hybridkit.registry import registry

KINDS: Final = ("optimizer", "lr_controller", "constraint", "clusterer", "quantizer")
_COMMA: Final = re.compile(r",(?![^(\[{]*[)\]}])")  # not one inside brackets


def custom_methods(
    texts: Sequence[str], tables: Mapping[str, Any], grid: Sequence[float] = ()
) -> tuple[Method, ...]:
    """The methods that `texts` and `tables` describe, with `grid` where a table has none of its own.

    Raises UsageError for a form that is not understood, a strategy or an option that does not exist, a
    learning rate that is none, and a name that is taken.
    """
    found: dict[str, Method] = {}
    for name, parts in (*map(_split, texts), *tables.items()):
        where = f"method {name!r}"
        if name in METHODS or name in found:
            raise UsageError(f"{where}: the name is taken; choose another one")
        if not name.strip() or not name.isprintable():
            raise UsageError(f"{where}: a name needs letters, and no control characters")
        if not isinstance(parts, Mapping):
            raise UsageError(f"{where}: expected a table with an optimizer, say")
        found[name] = _method(name, dict(parts), grid, where)
    return tuple(found.values())


def parse_grid(text: str) -> tuple[float, ...]:
    """Learning rates, separated by commas. Raises UsageError for anything else."""
    return _rates(text.split(","), "--grid")


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the parts of a method's text, as a table has them."""
    name, equals, rest = text.partition("=")
    parts: dict[str, Any] = {}
    for item in _COMMA.split(rest):
        setting = re.fullmatch(r"\s*([\w-]+)(?:\.([\w-]+)\s*=|\s*:)\s*(.+?)\s*", item)
        if not equals or setting is None:
            raise UsageError(
                f"--method {text}: expected NAME=KIND:STRATEGY,KIND.OPTION=VALUE, as in "
                "mine=optimizer:torch.optim:NAdam,lr_controller:cosine"
            )
        kind, option, value = setting.groups()
        if option is None:
            parts[kind] = value
        else:
            parts.setdefault("options", {}).setdefault(kind, {})[option.replace("-", "_")] = value
    return name.strip(), parts


def _method(name: str, parts: dict[str, Any], grid: Sequence[float], where: str) -> Method:
    rates = _rates(parts.pop("grid"), where) if "grid" in parts else tuple(grid) or ADAM_GRID
    options = parts.pop("options", {})
    if not isinstance(options, Mapping) or not all(isinstance(o, Mapping) for o in options.values()):
        raise UsageError(f"{where}: options is a table of tables, as in options.optimizer.momentum = 0.9")
    flags = {_kind(kind, where): value for kind, value in parts.items()}
    settings = {_kind(kind, where): dict(values) for kind, values in options.items()}
    if not flags:
        raise UsageError(f"{where}: nothing is said of it; give it an optimizer, say")
    for kind, value in flags.items():
        if not isinstance(value, str):
            raise UsageError(f"{where}: {kind} is {value!r}, which is not the name of a strategy")
    method = Method(
        name,
        flags,
        settings,
        grid=rates,
        precisions=("ternary",) if "quantizer" in flags else (),
        custom=True,
    )
    _try(method, where)
    return method


def _try(method: Method, where: str) -> None:
    """Resolve it, and make every strategy of it, so that a mistake is found before anything is run."""
    import torch

    from hybridkit.optim.base import build_base_optimizer
    from hybridkit.training.config import resolve

    precision = method.precisions[0] if method.precisions else "fp32"
    try:
        config = resolve(
            options=method.options,  # type: ignore[arg-type]
            max_steps=1,
            **QUANTISED[precision],
            **method.flags,
        )
        for kind in method.flags:
            if kind != "optimizer":
                registry().create(kind, getattr(config, kind), config.strategy_options(kind))  # type: ignore[arg-type]
        weight = torch.nn.Parameter(torch.ones(2, 2))
        build_base_optimizer(
            config.optimizer,
            [("hidden.weight", weight), ("head.weight", torch.nn.Parameter(torch.ones(2, 2)))],
            lr=method.grid[0],
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            options=config.strategy_options("optimizer"),
        )
    except Exception as error:  # a stranger's code may fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{where}: {reason}") from None


def _kind(text: str, where: str) -> str:
    kind = text.replace("-", "_")
    if kind not in KINDS:
        raise UsageError(f"{where}: {text!r} is no part of a method; {nearest(kind, KINDS)}")
    return kind


def _rates(values: Any, where: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        rates = ()
    if not rates or len(set(rates)) < len(rates) or not all(math.isfinite(r) and r > 0 for r in rates):
        raise UsageError(f"{where}: a grid is a list of different learning rates above zero, not {values!r}")
    return tuple(sorted(rates))
