"""Data out of Debian's packages, data sets of R among them, and single files; nothing is installed.

A package or file is fetched once, into the cache of the benches (HYBRIDKIT_BENCH_CACHE moves it). Where that
is out of reach, the file may be put there by hand: it is its sha256 that counts.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.kernels.toolchain import cache_folder
from hybridkit.errors import FileError, UsageError
from hybridkit.packing.atomic import atomic_file

POOL: Final = "https://deb.debian.org/debian/pool/main/"
PATIENCE: Final = 30  # seconds without an answer


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package: where it is in the pool, and its sha256."""

    path: str
    sha256: str

    @property
    def url(self) -> str:
        """Where it comes from."""
        return POOL + self.path

    @property
    def cached(self) -> Path:
        """Where it is kept on this machine."""
        return cache_folder() / Path(self.path).name


@dataclass(frozen=True, slots=True)
class Source:
    """A file by its address, and its sha256."""

    url: str
    sha256: str

    @property
    def cached(self) -> Path:
        """Where it is kept on this machine; many are called `test.txt`."""
        return cache_folder() / f"{self.sha256[:12]}-{Path(self.url).name}"


def read_files(package: Package, *paths: str) -> list[bytes]:
    """The contents of some files of a package, named by their paths in R's library. Raises as `fetch`."""
    found = read_matching(package, *(re.escape(f"usr/lib/R/site-library/{path}") for path in paths))
    return [content for contents in found for content in contents]


def read_matching(package: Package, *patterns: str) -> list[list[bytes]]:
    """For each regular expression, the contents of the files whose whole path it matches, by path.

    Links are left out. Raises as `fetch`, and FileError where one matches nothing.
    """
    archive = fetch(package)
    found: list[list[bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(_ar_member(archive, b"data.tar.xz"))) as files:
        members = {m.name.removeprefix("./"): m for m in files.getmembers() if m.isfile()}
        for pattern in patterns:
            names = sorted(name for name in members if re.fullmatch(pattern, name))
            if not names:
                raise FileError(f"{package.cached} holds no {pattern}")
            opened = [files.extractfile(members[name]) for name in names]
            found.append([file.read() for file in opened if file is not None])
    return found


def read_r(content: bytes, kind: Literal["rda", "rds"]) -> Any:
    """What an R file holds: of rda objects by name, of rds one object. Raises UsageError without `rdata`."""
    try:
        import rdata
    except ImportError:
        raise UsageError("the held-out tasks need rdata: pip install 'hybridkit[bench]'") from None
    read = rdata.read_rda if kind == "rda" else rdata.read_rds
    return read(io.BytesIO(content), default_encoding="utf-8")


def fetch(package: Package | Source) -> bytes:
    """The package or file, from the cache or else from where it comes from.

    Raises FileError if it cannot be fetched or is another file.
    """
    known = package.cached.is_file()
    content = package.cached.read_bytes() if known else _download(package)
    found = hashlib.sha256(content).hexdigest()
    if found != package.sha256:
        place = f"{package.cached} (delete it)" if known else package.url
        raise FileError(f"{place} has the sha256 {found}, not the expected {package.sha256}")
    if not known:
        with atomic_file(package.cached) as file:
            file.write(content)
    return content


def _download(package: Package | Source) -> bytes:
    url = package.url
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            content: bytes = answer.read()
    except (OSError, HTTPException) as error:
        raise FileError(f"cannot get {url} ({error}); put the file at {package.cached}") from None
    return content


def _ar_member(archive: bytes, name: bytes) -> bytes:
    """A .deb is an `ar` archive: 8 bytes of magic, then headers of 60 bytes, each before its content."""
    at = 8
    while at < len(archive):
        header, start = archive[at : at + 60], at + 60
        size = int(header[48:58])
        if header[:16].rstrip(b" /") == name:
            return archive[start : start + size]
        at = start + size + size % 2
    raise FileError(f"the archive has no {name.decode()}")
