"""Compiles the bench's small native parts with the system's compiler, into a cache outside the repository."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE / "native"
KERNELS = HERE.parents[1] / "native" / "kernels"


def cache_folder() -> Path:
    """HYBRIDKIT_BENCH_CACHE, or the user's cache folder."""
    base = os.environ.get("HYBRIDKIT_BENCH_CACHE")
    if base is None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridkit-bench"
    folder = Path(base)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def compiler() -> str:
    """CXX, or the first C++ compiler on the path. Raises SystemExit if there is none."""
    named = os.environ.get("CXX")
    for name in (named,) if named else ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return found
    raise SystemExit("the kernel bench needs a C++17 compiler (set CXX)")


def build(name: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """The library made of native/NAME.cc; it is compiled again when the source or the command has changed."""
    source = NATIVE / f"{name}.cc"
    command = [
        compiler(),
        "-std=c++17",
        "-O3",
        "-shared",
        "-fPIC",
        "-pthread",
        f"-I{KERNELS}",
        str(source),
        *flags,
    ]
    headers = b"".join(path.read_bytes() for path in sorted(KERNELS.glob("*.h")))
    key = hashlib.sha256(source.read_bytes() + headers + " ".join(command).encode()).hexdigest()[:16]
    library = cache_folder() / f"{name}-{key}.so"
    if not library.exists():
        temporary = library.with_suffix(f".{os.getpid()}.tmp")
        done = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
        os.replace(temporary, library)
    return ctypes.CDLL(str(library))
