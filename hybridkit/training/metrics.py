"""The log of a run: one JSON object per line, appended as training goes, cut back on resume.

A record has `event` ("step", "epoch", "evaluation" or "final"), `step` (steps taken so far) and numbers, or
lists of them, by name. A number that is not finite is written as null. The fields of `TEXTS` hold text. Only
`seconds` differs between two runs of one configuration.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridkit.errors import FileError
from hybridkit.packing.atomic import atomic_file
from hybridkit.training.files import parse_json, to_json

Record = dict[str, Any]
EVENTS = ("step", "epoch", "evaluation", "final")
TEXTS = ("layers", "sample")  # names of layers, text that the network wrote


class MetricsLog:
    """Appends records to a JSONL file: the system has each line at once, the disk after `sync`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> Record:
        """Append one record, and return it."""
        record = {"event": event, "step": step, **{name: _finite(value) for name, value in values.items()}}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        return record

    def sync(self) -> None:
        """Wait until the disk has every record: called before a checkpoint that relies on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_records(path: Path) -> list[Record]:
    """The records of a log; a last line that a killed process left incomplete is dropped.

    Raises FileError where the file is missing or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except FileNotFoundError:
        raise FileError(f"{path}: there is no metrics log here") from None
    except (OSError, UnicodeDecodeError):
        raise FileError(f"{path}: the metrics log cannot be read") from None
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
            if not _is_record(record):
                raise ValueError
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise FileError(f"{path}: line {number} of the metrics log is corrupted") from None
        records.append(record)
    return records


def cut_back(path: Path, step: int) -> int:
    """Keep what was logged up to `step`, without the run's final record, as if it had stopped there.

    Returns the last step that had been logged.
    """
    records = read_records(path)
    kept = [r for r in records if r["step"] <= step and r["event"] != "final"]
    with atomic_file(path) as file:
        file.write("".join(json.dumps(record) + "\n" for record in kept).encode())
    return max((r["step"] for r in records), default=0)


def numbers(record: Record) -> Record:
    """A record without its lists and texts."""
    return {n: v for n, v in record.items() if n == "event" or not isinstance(v, list | str)}


def rows(records: list[Record]) -> list[Record]:
    """One row per step: every number that was logged after that step, under one name each."""
    merged: dict[int, Record] = {}
    for record in records:
        row = merged.setdefault(record["step"], {"step": record["step"]})
        prefix = "" if record["event"] in ("step", "evaluation", "final") else record["event"] + "_"
        row |= {
            f"{prefix}{name}": value
            for name, value in record.items()
            if name not in ("event", "step", "epoch", *TEXTS)
        }
        row.setdefault("epoch", record.get("epoch"))
    return list(merged.values())


def write_csv(path: Path, records: list[Record]) -> None:
    """`rows` as CSV; a column per name, empty where a row has no value."""
    table = rows(records)
    columns = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(table)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def save_metrics(destination: Path, records: list[Record], about: Mapping[str, Any]) -> list[Path]:
    """Every logged value, in a `.csv` or `.json` file, or as `metrics.csv` and `metrics.json` in a folder.

    `about` (configuration, environment) goes into the JSON. Returns the paths written.
    """
    paths = [destination]
    if destination.suffix not in (".csv", ".json"):
        paths = [destination / "metrics.csv", destination / "metrics.json"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            write_csv(path, records)
        else:
            with atomic_file(path) as file:
                file.write(to_json({"schema": "hybridkit/metrics/1", **about, "records": records}))
    return paths


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0:
        return False
    if record.get("event") not in EVENTS or not all(name.isprintable() for name in record):
        return False
    allowed = {name: str if name in TEXTS else int | float | None for name in record if name != "event"}
    return all(isinstance(v, kind) for name, kind in allowed.items() for v in _each(record[name]))


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
