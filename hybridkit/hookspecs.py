"""The whole plugin surface: one hook that returns light descriptions of strategies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import pluggy

Kind = Literal[
    "lr_controller",
    "clusterer",
    "constraint",
    "quantizer",
    "optimizer",
    "exporter",
    "task",
    "source",
    "metric_sink",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

hookspec = pluggy.HookspecMarker("hybridkit")
hookimpl = pluggy.HookimplMarker("hybridkit")


@dataclass(frozen=True, slots=True)
class Strategy:
    """One strategy, described without importing it.

    `target` is ``package.module:attribute``; it is imported when the strategy is used. The attribute is
    a class that follows its kind's protocol (see docs/plugins.md). If it has a nested dataclass `Options`,
    it is constructed as ``Class(Options(...))``, otherwise with keyword arguments from its signature.
    """

    kind: Kind
    name: str
    summary: str
    target: str


@hookspec
def hybridkit_strategies() -> Iterable[Strategy]:  # type: ignore[empty-body]
    """Return a description of every strategy this plugin brings."""
