"""What happened to a run: one JSON object per line, with the time; nothing is ever taken back.

Unlike the log of metrics it tells of what a resumed run has forgotten, and differs between equal runs.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hybridkit.errors import FileError, printable
from hybridkit.training.files import parse_json

What = Literal["started", "resumed", "warning", "went back", "interrupted", "failed", "finished"]


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened after `step` steps; `time` in ISO 8601, UTC."""

    time: str
    step: int
    what: What
    text: str = ""


def add_note(path: Path, step: int, what: What, text: str = "") -> None:
    """Append one note to the file at `path`."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(Note(now, step, what, printable(text)))) + "\n")


def read_notes(path: Path) -> list[Note]:
    """The notes of a run; none where the file is missing, as in runs of older versions.

    A line that is something else is skipped: nothing but a page for people depends on it. Raises FileError
    where the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None
    return [note for line in lines if (note := _note(line))]


def _note(line: str) -> Note | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        found: Note = TypeAdapter(Note).validate_python(parse_json(line))
    except (ValueError, RecursionError, ValidationError):
        return None
    return found
