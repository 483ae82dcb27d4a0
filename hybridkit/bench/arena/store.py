"""What has been run already: one line of JSON each, appended as soon as it is known.

A line counts only while the code that made it is the same: it carries a hash of the sources that its method
depends on. A report that was interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from hybridkit.bench.arena.cells import Cell
from hybridkit.bench.arena.trials import Record, Trial, from_json, to_json
from hybridkit.bench.machine import this_machine
from hybridkit.bench.overhead import OverheadResult, OverheadSpec

PACKAGE: Final = Path(__file__).resolve().parents[2]
COMMON: Final = ("tasks", "quant", "training", "optim", "bench/arena/rivals.py")
OURS: Final = (  # of these, rivals use nothing
    "optim/controllers/aux_nn.py",
    "optim/controllers/features.py",
    "optim/controllers/network.py",
    "optim/controllers/relative_step.py",
    "optim/factory.py",
    "optim/optimizers/steepest.py",
    "optim/optimizers/orthogonal.py",
    "optim/constraints",
    "optim/radius.py",
    "optim/parameter_clusters.py",
    "clustering",
)


class Job(Protocol):
    """Something to run whose result is worth keeping."""

    @property
    def cell(self) -> Cell:
        """What is trained."""
        ...

    @property
    def is_ours(self) -> bool:
        """Whether the result depends on what is ours."""
        ...

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
        self._known: dict[tuple[str, str], R] = {}
        if path.is_file():
            for line in path.read_text("utf-8").splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            return
        self._known[row["trial"], row["sources"]] = self.decode(row["record"])

    def find(self, job: S) -> R | None:
        """The record of a job, if it was made by the present sources."""
        return self._known.get((job.key(), sources_of(job)))

    def add(self, job: S, record: R) -> None:
        """Keep a record."""
        row = {
            "trial": job.key(),
            "sources": sources_of(job),
            "commit": this_machine().git_commit,
            "record": self.encode(record),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._take(json.dumps(row))


def trial_store(path: Path) -> Store[Trial, Record]:
    """The training runs kept in a file."""
    return Store(path, to_json, from_json)


def overhead_store(path: Path) -> Store[OverheadSpec, OverheadResult]:
    """The times of steps kept in a file."""
    from pydantic import TypeAdapter

    return Store(path, dataclasses.asdict, TypeAdapter(OverheadResult).validate_python)


def sources_of(job: Job) -> str:
    """A hash of what a job's result depends on."""
    return sources(job.is_ours, job.cell.modules)


@cache
def sources(ours: bool, modules: tuple[str, ...] = ()) -> str:
    """Of our code, that of the named `modules`, and the version of torch."""
    digest = hashlib.sha256(version("torch").encode())
    mine = set(_files(OURS))
    for path in _files((*COMMON, *OURS)):
        if ours or path not in mine:
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    for name in modules:
        digest.update(name.encode() + _source(name))
    return digest.hexdigest()[:12]


def _source(module: str) -> bytes:
    """The text of a module; nothing where it has none of its own."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a plugin's `distribution:name`
        return b""
    return Path(found.origin).read_bytes() if found and found.has_location and found.origin else b""


def _files(names: Iterable[str]) -> list[Path]:
    found: set[Path] = set()
    for name in names:
        path = PACKAGE / name
        found |= {path} if path.is_file() else set(path.rglob("*.py"))
    return sorted(found)
