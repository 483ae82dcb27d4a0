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
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

import pluggy

from hybridkit import __version__, builtins, hookspecs
from hybridkit.errors import HybridkitError, UsageError
from hybridkit.hookspecs import KINDS, Kind, Strategy
from hybridkit.options import construct, nearest

GROUP = "hybridkit"
BUILTIN = "hybridkit"

_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_NAME = re.compile(r"[a-z0-9]+([-_.][a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered strategy and the distribution it came from."""

    strategy: Strategy
    distribution: str
    version: str

    @property
    def qualified_name(self) -> str:
        """`distribution:name`, which is unique within a kind where a bare name may not be."""
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
        distribution, colon, bare = name.rpartition(":")
        found = [
            e
            for e in self.entries
            if e.strategy.kind == kind
            and e.strategy.name == bare
            and (not colon or e.distribution == normalize(distribution))
        ]
        if len(found) == 1:
            return found[0]
        label = kind.replace("_", "-")
        if found:
            choices = " or ".join(sorted(e.qualified_name for e in found))
            raise UsageError(f"{label} {name!r} is brought by several plugins; say {choices}")
        raise UsageError(f"no {label} is called {name!r}; {nearest(name, self.names(kind))}")

    def load(self, kind: Kind, name: str) -> Any:
        """Import the strategy called `name`, `distribution:name` or `package.module:attribute`.

        Raises UsageError if there is no such strategy, HybridkitError if a plugin's module does not import.
        """
        known = {e.qualified_name for e in self.entries if e.strategy.kind == kind}
        distribution, colon, bare = name.rpartition(":")
        if colon and f"{normalize(distribution)}:{bare}" not in known:
            return import_target(name)
        entry = self.find(kind, name)
        try:
            return import_target(entry.strategy.target)
        except Exception as error:  # a stranger's code may fail in any way
            raise HybridkitError(
                f"{kind.replace('_', '-')} {name!r} of {entry.distribution} {entry.version} "
                f"does not load: {_reason(error)}"
            ) from error

    def create(self, kind: Kind, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """An instance of a strategy with the given options, which are validated."""
        return construct(self.load(kind, name), options or {}, where=f"{kind.replace('_', '-')} {name!r}")


def normalize(distribution: str) -> str:
    """A distribution's name as the packaging standard compares it: `My.Plug_in` -> `my-plug-in`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def import_target(target: str) -> Any:
    """Import ``package.module:attribute``; the command line sees the current directory too.

    Raises UsageError if the text has another form, or the module or the attribute does not exist.
    """
    if not _TARGET.fullmatch(target):
        raise UsageError(f"{target!r} is not of the form package.module:attribute")
    module_name, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"{target!r}: there is no module {error.name!r}") from None
        raise
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            public = [n for n in getattr(found, "__dict__", {}) if not n.startswith("_")]
            raise UsageError(f"{module_name!r} has no {attribute!r}; {nearest(part, public)}") from None
    return found


def discover() -> Registry:
    """Load every plugin: the built-ins, then those of the entry-point group, each on its own.

    Raises HybridkitError for a broken plugin if HYBRIDKIT_STRICT_PLUGINS is set.
    """
    found = Registry()
    _add(found, BUILTIN, __version__, "builtin", lambda: builtins)
    if not _switched_on("HYBRIDKIT_NO_PLUGINS"):
        for distribution in _distributions():
            _add_distribution(found, distribution)
    if found.failures and _switched_on("HYBRIDKIT_STRICT_PLUGINS"):
        broken = found.failures[0]
        raise HybridkitError(
            f"plugin {broken.entry_point!r} of {broken.distribution} {broken.version} failed: {broken.reason}"
        )
    return found


@functools.cache
def registry() -> Registry:
    """The registry of this process, discovered on first use."""
    return discover()


def _name(distribution: Distribution) -> str | None:
    """Its name; None where its metadata are missing, which the backport importlib_metadata raises for."""
    try:
        return distribution.metadata["Name"] if distribution.metadata else None
    except FileNotFoundError:
        return None


def _distributions() -> list[Distribution]:
    """The installed distributions with plugins, by name; the first on the path hides others of its name."""
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        # Reading every distribution's METADATA would take longer than all the rest of a command's start.
        if f"[{GROUP}]" in (distribution.read_text("entry_points.txt") or ""):
            name = _name(distribution)
            if name:  # a half-removed installation has none
                found.setdefault(normalize(name), distribution)
    return [found[name] for name in sorted(found)]


def _add_distribution(found: Registry, distribution: Distribution) -> None:
    name, version = normalize(distribution.metadata["Name"]), distribution.metadata["Version"] or "unknown"
    try:
        points = sorted(p for p in distribution.entry_points if p.group == GROUP)
    except Exception as error:  # malformed entry_points.txt
        found.failures.append(Failure(name, version, "entry_points.txt", _reason(error)))
        return
    for point in points:
        if point.value != builtins.__name__:
            _add(found, name, version, point.name, functools.partial(EntryPoint.load, point))


def _add(
    found: Registry, distribution: str, version: str, entry_point: str, load: Callable[[], object]
) -> None:
    """Load one plugin and add what it describes; all of it or, with a recorded failure, nothing."""
    try:
        strategies = _ask(load(), f"{distribution}:{entry_point}")
        taken = {(e.strategy.kind, e.qualified_name) for e in found.entries}
        for strategy in strategies:
            key = (strategy.kind, f"{distribution}:{strategy.name}")
            if key in taken:
                raise ValueError(f"{distribution} describes {strategy.kind} {strategy.name!r} twice")
            taken.add(key)
    except (Exception, SystemExit) as error:  # a stranger's code may fail in any way
        found.failures.append(Failure(distribution, version, entry_point, _reason(error)))
    else:
        found.entries.extend(Entry(s, distribution, version) for s in strategies)


def _ask(plugin: object, name: str) -> list[Strategy]:
    """Call the plugin's hook and check what it returns. Each plugin has a manager of its own: isolation."""
    manager = pluggy.PluginManager("hybridkit")
    manager.add_hookspecs(hookspecs)
    if _switched_on("HYBRIDKIT_TRACE_PLUGINS"):
        manager.trace.root.setwriter(lambda text: print(f"{name}: {text}", end="", file=sys.stderr))
        manager.enable_tracing()
    manager.register(plugin, name=name)
    manager.check_pending()
    if not manager.get_hookcallers(plugin):
        raise TypeError(f"{plugin!r} has no function hybridkit_strategies marked with @hybridkit.hookimpl")
    answers = manager.hook.hybridkit_strategies()
    if not answers or isinstance(answers[0], Strategy | str) or not isinstance(answers[0], Iterable):
        raise TypeError(f"hybridkit_strategies returned {_shown(answers)}, not a list of Strategy")
    strategies = list(answers[0])
    for strategy in strategies:
        _check(strategy)
    return strategies


def _check(strategy: object) -> None:
    if not isinstance(strategy, Strategy):
        raise TypeError(f"hybridkit_strategies returned {strategy!r} where a Strategy is expected")
    if strategy.kind not in KINDS:
        hint = nearest(str(strategy.kind), KINDS)
        raise ValueError(f"strategy {strategy.name!r}: unknown kind {strategy.kind!r}; {hint}")
    if not _NAME.fullmatch(strategy.name):
        raise ValueError(f"strategy name {strategy.name!r}: use lower-case letters, digits and hyphens")
    if not strategy.summary.strip() or "\n" in strategy.summary:
        raise ValueError(f"strategy {strategy.name!r}: the summary must be one line of text")
    if not _TARGET.fullmatch(strategy.target):
        raise ValueError(
            f"strategy {strategy.name!r}: target {strategy.target!r} is not package.module:attribute"
        )


def _shown(answers: list[Any]) -> str:
    return repr(answers[0]) if answers else "None"


def _reason(error: BaseException) -> str:
    """The error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no")
