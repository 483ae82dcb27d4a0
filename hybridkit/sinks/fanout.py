"""The sinks of a run: made before it begins, kept from ending or changing it afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hybridkit.randomness import undisturbed
from hybridkit.registry import registry
from hybridkit.sinks.names import sink_options
from hybridkit.sinks.protocol import MetricSink, RunInfo


class Sinks:
    """Every sink of a run. One that raises is warned about once, and gets nothing more.

    No sink moves the global random generators of Python, NumPy and torch (CPU).
    """

    def __init__(self, names: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Make them, which imports their libraries. Raises UsageError where one is missing."""
        options = sink_options(names, settings)
        with undisturbed():
            self._sinks: dict[str, MetricSink] = {
                name: registry().create("metric_sink", name, options.get(name)) for name in names
            }
        self._warn: Callable[[str], None] = _ignore

    def open(
        self, run: RunInfo, records: Callable[[], list[dict[str, Any]]], warn: Callable[[str], None]
    ) -> None:
        """Open them for `run`, each with a folder of its own below `run.folder`.

        `records` gives the log up to `run.step`; what a sink lacks of it is written to it first. `warn` is
        told when a sink fails, then and later.
        """
        self._warn = warn
        for name in list(self._sinks):
            with self._guarded(name) as sink:
                own = run.folder / name.replace(":", "-")
                own.mkdir(parents=True, exist_ok=True)
                known = sink.open(dataclasses.replace(run, folder=own))
                for record in records() if run.step > known else ():
                    if record["step"] > known:
                        _write(sink, record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Give every sink one record of the log."""
        for name in list(self._sinks):
            with self._guarded(name) as sink:
                _write(sink, record)

    def close(self, *, ended: bool) -> None:
        """Close them all."""
        for name in list(self._sinks):
            with self._guarded(name) as sink:
                sink.close(ended=ended)
        self._sinks = {}

    @contextmanager
    def _guarded(self, name: str) -> Iterator[MetricSink]:
        try:
            with undisturbed():
                yield self._sinks[name]
        except (Exception, SystemExit) as error:  # a library's code may fail in any way
            del self._sinks[name]
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._warn(f"--sink {name} failed and gets nothing more ({reason}); metrics.jsonl has everything")


def _write(sink: MetricSink, record: Mapping[str, Any]) -> None:
    values = {name: value for name, value in record.items() if name not in ("event", "step")}
    sink.write(record["event"], record["step"], values)


def _ignore(message: str) -> None:
    pass
