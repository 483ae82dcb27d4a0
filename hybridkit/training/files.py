"""Small things about files: written through to the disk, read with one clear line where they are broken."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from hybridkit.errors import FileError


def write_synced(path: Path, data: bytes) -> None:
    """Write `data` to `path` and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def to_json(value: Any) -> bytes:
    """`value` as indented UTF-8 JSON. Raises ValueError for NaN and infinities."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def parse_json(text: str | bytes) -> Any:
    """The JSON value that `text` is. Raises ValueError, also for numbers that are not finite.

    Raises RecursionError where it is nested too deeply.
    """
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is not finite")
    return value


def read_json(path: Path, what: str) -> Any:
    """The JSON value in `path`. Raises FileError, which calls the file `what`."""
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise FileError(f"{path}: there is no {what} here") from None
    except OSError as error:
        raise FileError(f"{path}: the {what} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise FileError(f"{path}: the {what} is truncated or corrupted (it is not JSON)") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
