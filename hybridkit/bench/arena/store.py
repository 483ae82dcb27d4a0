"""What has been run already: one line of JSON each, appended as soon as it is known.

A line counts only while the code that made it is the same: it carries a hash of the sources that its method
depends on. A report that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

from hybridkit.bench.arena.methods import is_ours
from hybridkit.bench.arena.trials import Record, Trial, from_json, to_json
from hybridkit.bench.machine import this_machine

PACKAGE: Final = Path(__file__).resolve().parents[2]
COMMON: Final = ("tasks", "quant", "training", "optim", "bench/arena/rivals.py")
OURS: Final = (  # of these, rivals use nothing
    "optim/controllers/aux_nn.py",
    "optim/controllers/features.py",
    "optim/optimizers/steepest.py",
    "optim/optimizers/orthogonal.py",
    "optim/constraints",
    "optim/radius.py",
    "optim/parameter_clusters.py",
    "clustering",
)


class Store:
    """Records by trial, in a JSONL file that only grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[Trial, Record] = {}
        self._known: dict[tuple[str, str], Record] = {}
        if path.is_file():
            for line in path.read_text("utf-8").splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            return
        self._known[row["trial"], row["sources"]] = from_json(row["record"])

    def find(self, trial: Trial) -> Record | None:
        """The record of a trial, if it was made by the present sources."""
        return self._known.get((trial.key(), sources(is_ours(trial.method))))

    def add(self, trial: Trial, record: Record) -> None:
        """Keep a record."""
        row = {
            "trial": trial.key(),
            "sources": sources(is_ours(trial.method)),
            "commit": this_machine().git_commit,
            "record": to_json(record),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._take(json.dumps(row))


@cache
def sources(ours: bool) -> str:
    """A hash of what a trial's result depends on: code, and the version of torch."""
    digest = hashlib.sha256(version("torch").encode())
    mine = set(_files(OURS))
    for path in _files((*COMMON, *OURS)):
        if ours or path not in mine:
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _files(names: Iterable[str]) -> list[Path]:
    found: set[Path] = set()
    for name in names:
        path = PACKAGE / name
        found |= {path} if path.is_file() else set(path.rglob("*.py"))
    return sorted(found)
