"""Files and folders that appear whole or not at all, and what killed processes leave of them."""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hybridkit.errors import FileError

_TEMPORARY = re.compile(r"\..+\.([0-9]{1,10})-([0-9a-f]{8})-[0-9a-f]{8}\.(?:tmp|old)")


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new binary file in the folder of `path` that takes its place when the block ends without an error.

    Raises FileError if the folder does not exist or cannot be written.
    """
    target = Path(path)
    temporary = temporary_beside(target)
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        raise FileError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(target: Path) -> Path:
    """A new name in the folder of `target` that says which process of which machine writes there.

    What killed processes left there of the same target is removed.
    """
    _remove_left(target.parent, f".{glob.escape(target.name)}.*.tmp")
    owner = f"{os.getpid()}-{_machine()}-{secrets.token_hex(4)}"
    return target.with_name(f".{target.name}.{owner}.tmp")


@contextmanager
def folder_in_place(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place as a whole when the block ends without an error.

    A process that is killed between two renames leaves the old one as `.NAME.*.old`, which the next new one
    removes once it is there. Raises FileError if it cannot be made or put there; errors of the block are its
    own (`writing`).
    """
    new = temporary_beside(folder)
    old = new.with_suffix(".old")
    try:
        with writing(folder):
            new.mkdir()
        yield new
        with writing(folder):
            for path in new.rglob("*"):
                sync(path)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            sync(folder.parent)
        remove(old)
        _remove_left(folder.parent, f".{glob.escape(folder.name)}.*.old")
    finally:
        remove(new)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says in this context is a FileError about `path`."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from None


def sweep(folders: Iterable[Path]) -> None:
    """Remove from `folders` what processes of this machine that are no more were writing."""
    for folder in folders:
        _remove_left(folder, ".*.tmp")


def _remove_left(folder: Path, pattern: str) -> None:
    with contextlib.suppress(OSError):  # no such folder, or not ours
        for path in folder.glob(pattern):
            import psutil  # which few writers need

            found = _TEMPORARY.fullmatch(path.name)
            if found and found[2] == _machine() and not psutil.pid_exists(int(found[1])):
                remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or the names in a folder."""
    if path.is_dir() and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _machine() -> str:
    """Eight hex digits: process numbers mean nothing on another machine, or in another container."""
    return f"{zlib.crc32(platform.node().encode()):08x}"
