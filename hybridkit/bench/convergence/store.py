"""What has been run already: one line of JSON each, appended as soon as it is known.

A line is known by what was run and by the versions of what it used (identity.py), not by where code lies. A
bench that was interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from hybridkit.bench.convergence.trials import Record, Trial, from_json, to_json
from hybridkit.bench.machine import this_machine
from hybridkit.errors import FileError


class Job(Protocol):
    """Something to run whose result is worth keeping."""

    def key(self) -> str:
        """Its name among its kind."""
        ...


S = TypeVar("S", bound=Job)
R = TypeVar("R")


class Store(Generic[S, R]):
    """Records by job, in a JSONL file that only grows."""

    def __init__(
        self, path: Path, encode: Callable[[R], dict[str, Any]], decode: Callable[[dict[str, Any]], R]
    ) -> None:
        self.path, self.encode, self.decode = path, encode, decode
        self._known: dict[str, R] = {}
        if path.is_file():
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                self._take(line, number)

    def _take(self, line: str, number: int) -> None:
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            return
        try:
            self._known.setdefault(json.dumps(row["key"], sort_keys=True), self.decode(row["record"]))
        except (ValueError, TypeError, KeyError):
            raise FileError(
                f"{self.path}, line {number}: no result of this bench; move the file away"
            ) from None

    def find(self, job: S) -> R | None:
        """The record of a job, if it is there for the present versions."""
        return self._known.get(job.key())

    def add(self, job: S, record: R) -> None:
        """Keep a record."""
        key = job.key()
        row = {"key": json.loads(key), "commit": this_machine().git_commit, "record": self.encode(record)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() and not self._ends_a_line():
                file.write("\n")
            file.write(json.dumps(row) + "\n")
        self._known[key] = record

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"


def trial_store(path: Path) -> Store[Trial, Record]:
    """The training runs kept in a file."""
    return Store(path, to_json, from_json)


def plain_store(path: Path, kind: type[R]) -> Store[Any, R]:
    """The results of other jobs, dataclasses of one `kind`, kept in a file."""
    from pydantic import TypeAdapter

    return Store(path, dataclasses.asdict, TypeAdapter(kind).validate_python)  # type: ignore[arg-type]
