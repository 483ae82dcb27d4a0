"""Which sinks a user asked for, and with which options. Imports no sink's library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hybridkit.errors import UsageError
from hybridkit.options import nearest, parse_options
from hybridkit.registry import registry

NONE = "none"  # stands for no sink, where a default has to be overridden

Options = dict[str, dict[str, Any]]  # by the sink's name


def sink_names(given: str | Iterable[str]) -> list[str]:
    """The sinks that were asked for, each once: names, or several in one text with commas between."""
    texts = [given] if isinstance(given, str) else given
    names = (name.strip() for text in texts for name in text.split(","))
    return [name for name in dict.fromkeys(names) if name and name != NONE]


def sink_options(names: Sequence[str], settings: Mapping[str, Any]) -> Options:
    """The options of each sink, from settings `NAME.OPTION`; `OPTION` alone where there is one sink.

    A table under a sink's name, as config files have it, is a setting for each of its entries. Sinks without
    one are left out. Raises UsageError for an unknown sink, an option that it does not have, a value that
    does not fit, or a setting for a sink that was not asked for.
    """
    options: Options = {}
    by_setting = {_setting(name): name for name in names}
    for key, value in _flat(settings):
        prefix, dot, option = key.rpartition(".")
        if not dot and len(names) == 1:
            prefix = _setting(names[0])
        if not names:
            raise UsageError(f"metric_sink.{key} was set, but the run has no --sink")
        if prefix not in by_setting:
            raise UsageError(f"metric_sink.{key}: say metric_sink.NAME.OPTION; {nearest(prefix, by_setting)}")
        options.setdefault(by_setting[prefix], {})[option] = value
    for name in names:
        parse_options(registry().load("metric_sink", name), options.get(name, {}), f"metric-sink {name!r}")
    return options


def _setting(name: str) -> str:
    """A sink's name as `--set` spells it."""
    return name.replace("-", "_")


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{_setting(key)}.{_setting(option)}", item) for option, item in value.items())
        else:
            yield key, value
