"""The results of a bench as one JSON document, written whole or not at all and checked when read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hybridkit import __version__
from hybridkit.bench.claims import ClaimResult
from hybridkit.bench.convergence.summary import ConvergenceResult
from hybridkit.bench.inference import InferenceResult
from hybridkit.bench.machine import Machine
from hybridkit.bench.overhead import OverheadResult
from hybridkit.bench.quantization import QuantizationResult
from hybridkit.errors import FileError
from hybridkit.plain import plain

SCHEMA: Final = "hybridkit/bench/2"
FILE_NAME: Final = "results.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for. `threads`: of inference; training runs use one each, `workers` at a time."""

    sections: list[str]
    task: str
    seeds: list[int]
    epochs: int
    workers: int
    threads: list[int]


@dataclass(frozen=True, slots=True)
class BenchResults:
    """Everything that was measured, where, with what, and how long it took. None: not asked for."""

    machine: Machine
    settings: Settings
    seconds: float
    convergence: ConvergenceResult | None = None
    quantization: QuantizationResult | None = None
    overhead: list[OverheadResult] = field(default_factory=list)
    inference: InferenceResult | None = None
    claims: list[ClaimResult] = field(default_factory=list)


def to_json(results: BenchResults) -> dict[str, Any]:
    """The document, of plain JSON values; a number that is not finite (never reached) is null."""
    return {"schema": SCHEMA, "version": __version__, **plain(results)}


def from_json(document: Any) -> BenchResults:
    """What `to_json` wrote. Raises FileError if it is something else."""
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise FileError(f"this is no bench result of the kind {SCHEMA}")
    try:
        return TypeAdapter(BenchResults).validate_python(dict(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FileError(f"the bench result is damaged: {where}: {first['msg']}") from None


def save(results: BenchResults, folder: Path) -> Path:
    """Write the document into `folder`, which is made if need be. Raises FileError if that fails."""
    from hybridkit.packing.atomic import atomic_file

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {folder}: {error.strerror or error}") from None
    path = folder / FILE_NAME
    with atomic_file(path) as file:
        file.write((json.dumps(to_json(results), indent=2, allow_nan=False) + "\n").encode())
    return path


def read(path: Path) -> BenchResults:
    """The results in a file. Raises FileError if it is missing, damaged or of another kind."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read as JSON: {error}") from None
    try:
        return from_json(document)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
