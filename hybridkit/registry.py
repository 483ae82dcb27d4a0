"""Discovery of strategies: name -> strategy, through pluggy and the entry-point group `hybridkit`.

The built-in strategies arrive through the same hook as everybody else's. One broken plugin is recorded
and skipped; nothing a plugin describes is imported before it is used.

Environment: HYBRIDKIT_NO_PLUGINS=1 loads the built-ins only, HYBRIDKIT_STRICT_PLUGINS=1 turns a broken
plugin into an error, HYBRIDKIT_TRACE_PLUGINS=1 prints every hook call to stderr.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

import pluggy

from hybridkit import builtins as builtin_strategies
from hybridkit import hookspecs
from hybridkit.errors import UsageError
from hybridkit.hookspecs import KINDS, Kind, Strategy
from hybridkit.options import construct, nearest

GROUP = "hybridkit"
BUILTIN = "hybridkit"


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered strategy and the distribution it came from."""

    strategy: Strategy
    distribution: str
    version: str

    @property
    def qualified_name(self) -> str:
        """`distribution:name`, which is unique where a bare name may not be."""
        return f"{self.distribution}:{self.strategy.name}"


@dataclass(frozen=True, slots=True)
class Failure:
    """A plugin that did not load, and why."""

    distribution: str
    version: str
    entry_point: str
    reason: str


@dataclass(slots=True)
class Registry:
    """All strategies that were found, and the plugins that failed to load."""

    entries: list[Entry] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def names(self, kind: Kind) -> list[str]:
        """The bare names of one kind, sorted, each once."""
        return sorted({e.strategy.name for e in self.entries if e.strategy.kind == kind})

    def find(self, kind: Kind, name: str) -> Entry:
        """The entry called `name` or `distribution:name`. Raises UsageError if there is none or several."""
        of_kind = [e for e in self.entries if e.strategy.kind == kind]
        found = [e for e in of_kind if name in (e.strategy.name, e.qualified_name)]
        if len(found) == 1:
            return found[0]
        label = kind.replace("_", "-")
        if found:
            choices = " or ".join(sorted(e.qualified_name for e in found))
            raise UsageError(f"{label} {name!r} is brought by several plugins; say {choices}")
        raise UsageError(f"no {label} is called {name!r}; {nearest(name, self.names(kind))}")

    def load(self, kind: Kind, name: str) -> Any:
        """Import the strategy called `name`, `distribution:name` or `package.module:attribute`."""
        of_kind = [e for e in self.entries if e.strategy.kind == kind]
        prefix = name.partition(":")[0]
        if ":" in name and prefix not in {e.distribution for e in of_kind}:
            return import_target(name)
        return import_target(self.find(kind, name).strategy.target)

    def create(self, kind: Kind, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """An instance of a strategy with the given options, which are validated."""
        return construct(self.load(kind, name), options or {}, where=kind)


def import_target(target: str) -> Any:
    """Import ``package.module:attribute``, looking in the current directory too.

    Raises UsageError if the text has another form, or the module or the attribute does not exist.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{target!r} is not of the form package.module:attribute")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise UsageError(f"{target!r}: there is no module {error.name!r}") from None
        raise
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            public = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            raise UsageError(f"{module_name!r} has no {attribute!r}; {nearest(part, public)}") from None
    return found


def discover() -> Registry:
    """Load every plugin: the built-ins, then those of the entry-point group, each on its own."""
    manager = pluggy.PluginManager("hybridkit")
    manager.add_hookspecs(hookspecs)
    if os.environ.get("HYBRIDKIT_TRACE_PLUGINS"):
        manager.trace.root.setwriter(lambda text: print(text, end="", file=sys.stderr))
        manager.enable_tracing()
    registry = Registry()
    _add(registry, manager, builtin_strategies, BUILTIN, _own_version(), "builtin")
    if not os.environ.get("HYBRIDKIT_NO_PLUGINS"):
        for distribution, point in _entry_points():
            _add(registry, manager, point, distribution.name, distribution.version, point.name)
    if registry.failures and os.environ.get("HYBRIDKIT_STRICT_PLUGINS"):
        broken = registry.failures[0]
        raise UsageError(
            f"plugin {broken.entry_point!r} of {broken.distribution} {broken.version} failed: {broken.reason}"
        )
    return registry


@functools.cache
def registry() -> Registry:
    """The registry of this process, discovered on first use."""
    return discover()


def _add(
    registry: Registry,
    manager: pluggy.PluginManager,
    source: Any,
    distribution: str,
    version: str,
    entry_point: str,
) -> None:
    try:
        plugin = source.load() if isinstance(source, EntryPoint) else source
        manager.register(plugin, name=f"{distribution}:{entry_point}")
        only_this = manager.subset_hook_caller(
            "hybridkit_strategies", [p for p in manager.get_plugins() if p is not plugin]
        )
        described = [s for group in only_this() for s in group]
        for strategy in described:
            _check(strategy)
    except Exception as error:  # a stranger's code may fail in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        registry.failures.append(Failure(distribution, version, entry_point, reason))
        return
    registry.entries.extend(Entry(s, distribution, version) for s in described)


def _check(strategy: Any) -> None:
    if not isinstance(strategy, Strategy):
        raise TypeError(f"hybridkit_strategies returned {strategy!r}, not a Strategy")
    if strategy.kind not in KINDS:
        raise ValueError(f"strategy {strategy.name!r}: unknown kind {strategy.kind!r}; {nearest(strategy.kind, KINDS)}")


def _entry_points() -> list[tuple[Distribution, EntryPoint]]:
    found: dict[tuple[str, str], tuple[Distribution, EntryPoint]] = {}
    for distribution in distributions():
        for point in distribution.entry_points:
            if point.group == GROUP and point.value != "hybridkit.builtins":
                found.setdefault((distribution.name, point.name), (distribution, point))
    return [found[key] for key in sorted(found)]


def _own_version() -> str:
    from hybridkit import __version__

    return __version__
