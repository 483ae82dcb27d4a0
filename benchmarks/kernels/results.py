"""The results of all processes of a kernel bench as one document, and medians and ratios out of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Final

from limits import Caches, Limits, floor_seconds

from hybridkit.packing.atomic import atomic_file
from hybridkit.packing.tiles import tiled_shape

SCHEMA: Final = "hybridkit/kernels/1"
OURS, OURS_FLOAT = "hybridkit int8", "hybridkit float"


@dataclass(frozen=True)
class Case:
    """One product: shape, rows, threads, and whether the weights come from memory."""

    n: int
    k: int
    m: int
    threads: int
    cold: bool = False

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.n} x {self.k}, M = {self.m}{' cold' if self.cold else ''}, {threads}"


@dataclass(frozen=True)
class Results:
    """seconds[peer][case]: of each process. limits: of each process, by threads."""

    document: Mapping[str, Any]

    @cached_property
    def seconds(self) -> dict[str, dict[Case, list[float]]]:
        """Net of the host's own call."""
        found: dict[str, dict[Case, list[float]]] = {}
        for sample in self.document["samples"]:
            case = Case(*(sample[name] for name in ("n", "k", "m", "threads", "cold")))
            found.setdefault(sample["peer"], {})[case] = sample["seconds"]
        return found

    @property
    def isa(self) -> str:
        """The instruction set that ran."""
        return str(self.document["isa"])

    @property
    def peers(self) -> list[str]:
        """Everybody but us."""
        return [name for name in self.seconds if name.startswith(("ORT", "ggml"))]

    def cases(self, peer: str = OURS) -> Iterable[Case]:
        """What was measured of a peer."""
        return self.seconds.get(peer, {}).keys()

    def time(self, peer: str, case: Case) -> float | None:
        """The median over the processes, in seconds; None: not measured."""
        found = self.seconds.get(peer, {}).get(case)
        return median(found) if found else None

    def ratio(self, peer: str, other: str, case: Case) -> float | None:
        """How many times as long as `other` a peer takes: the median over the processes."""
        mine, theirs = (self.seconds.get(name, {}).get(case) for name in (peer, other))
        return median(a / b for a, b in zip(mine, theirs, strict=True)) if mine and theirs else None

    def best_peer(self, case: Case) -> str | None:
        """The fastest peer by its median."""
        measured = [name for name in self.peers if self.time(name, case) is not None]
        return min(measured, key=lambda name: self.time(name, case) or 0.0, default=None)

    def floors(self, case: Case, *, mode: str = "int8") -> list[float]:
        """The least seconds that each process's limits allow, on the page size in use."""
        caches = Caches(**self.document["caches"])
        n, k = case.n, case.k
        one = {"m": case.m, "n": n, "k": k, "mode": mode, "cold": case.cold}
        one["code_bytes"] = math.prod(tiled_shape(n, k, 2))
        return [
            floor_seconds(limit, caches, **one, huge=self.document["pages"] == "2 MiB")
            for process in self.document["limits"]
            for limit in (Limits(**values) for values in process)
            if limit.threads == case.threads
        ]

    def over_floor(self, peer: str, case: Case, *, mode: str = "int8") -> float | None:
        """A peer's time in floors: the median over the processes."""
        found = self.seconds.get(peer, {}).get(case)
        if not found:
            return None
        return median(a / b for a, b in zip(found, self.floors(case, mode=mode), strict=True))


def combine(processes: Iterable[Iterable[Mapping[str, Any]]], about: Mapping[str, Any]) -> Results:
    """One document from what each process printed (measure.py) and from what is known `about` the run.

    Raises ValueError if the processes measured different things.
    """
    heads, samples = [], {}
    for number, found in enumerate(processes):
        heads.append({k: v for one in found if "peer" not in one for k, v in one.items()})
        for sample in (one for one in found if "peer" in one):
            values = dict(sample)
            seconds, call = values.pop("seconds"), values.pop("call")
            row = samples.setdefault(tuple(values.values()), values | {"seconds": [], "call": []})
            row["seconds"].append(_rounded(seconds))
            row["call"].append(_rounded(call))
        if any(len(row["seconds"]) != number + 1 for row in samples.values()):
            raise ValueError("the processes did not measure the same things")
    first = {name: value for name, value in heads[0].items() if name != "limits"}
    limits = [
        [{k: v if k == "threads" else _rounded(v) for k, v in one.items()} for one in head["limits"]]
        for head in heads
    ]
    head = {"schema": SCHEMA, **about, **first, "processes": len(heads), "limits": limits}
    return Results({**head, "samples": list(samples.values())})


def write(results: Results, path: Path) -> None:
    """As JSON with a sample on each line, whole or not at all."""
    head = {name: value for name, value in results.document.items() if name != "samples"}
    lines = ",\n".join(f"    {json.dumps(sample)}" for sample in results.document["samples"])
    text = json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "samples": [\n{lines}\n  ]\n}}\n'
    with atomic_file(path) as file:
        file.write(text.encode())


def read(path: Path) -> Results:
    """What `write` wrote. Raises ValueError if it is something else."""
    document = json.loads(path.read_text("utf-8"))
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no result of the kind {SCHEMA}")
    return Results(document)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
