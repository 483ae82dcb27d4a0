"""ggml's TQ2_0 as a peer, optional: built from the source in PyPI's `llama-cpp-python` into the cache.

python benchmarks/kernels/ggml.py --isa avx2 avx512vnni

It needs cmake and a few minutes; HYBRIDKIT_BENCH_CACHE moves the cache.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import median
from typing import Final

import toolchain

PACKAGE: Final = "llama-cpp-python"
VERSION: Final = "0.3.36"
INSIDE: Final = "vendor/llama.cpp/ggml/"
BLOCK: Final = 256  # K must be a multiple of it
_X86: Final = ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")
_AVX512: Final = ("AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
# The same instructions as our kernels may use; what is not named here is off.
FEATURES: Final = {
    "avx2": _X86,
    "avxvnni": (*_X86, "AVX_VNNI"),
    "avx512vnni": (*_X86, *_AVX512),
    "amx": (*_X86, *_AVX512, "AMX_TILE", "AMX_INT8"),
}


class Graph:
    """A ggml graph that can be timed; see timed.Timed."""

    def __init__(self, library: ctypes.CDLL, graph: int, products: int) -> None:
        self.library, self.graph, self.products = library, graph, products

    def seconds(self, calls: int) -> float:
        """The median time of a run, in seconds."""
        found = (ctypes.c_double * calls)()
        if not self.library.peer_run(self.graph, calls, found):
            raise SystemExit("ggml could not compute its graph")
        return median(found) * 1e-9

    def close(self) -> None:
        """Frees the graph, not the weights."""
        self.library.peer_free_graph(self.graph)


class Weights:
    """`copies` matrices [n, k], each with memory of its own. k is a multiple of BLOCK."""

    def __init__(self, library: ctypes.CDLL, n: int, k: int, copies: int) -> None:
        self.library, self.copies = library, copies
        self.weights = library.peer_weights(n, k, copies)
        if not self.weights:
            raise MemoryError

    def products(self, m: int, threads: int) -> Graph:
        """The products of m rows with each of the copies."""
        return Graph(self.library, self.library.peer_products(self.weights, m, threads), self.copies)

    def close(self) -> None:
        """Frees the matrices."""
        self.library.peer_free_weights(self.weights)


def nothing(library: ctypes.CDLL, nodes: int, threads: int) -> Graph:
    """As many operations on one number: what ggml's own call costs."""
    return Graph(library, library.peer_nothing(nodes, threads), nodes)


def load(isa: str) -> ctypes.CDLL | None:
    """What `build` made for this instruction set, or None."""
    path = _library(isa)
    if not path.exists():
        return None
    library = ctypes.CDLL(str(path))
    i64, p = ctypes.c_int64, ctypes.c_void_p
    for name, result, arguments in (
        ("weights", p, [i64, i64, i64]),
        ("free_weights", None, [p]),
        ("products", p, [p, i64, ctypes.c_int]),
        ("nothing", p, [i64, ctypes.c_int]),
        ("free_graph", None, [p]),
        ("run", ctypes.c_int, [p, i64, p]),
    ):
        function = getattr(library, f"peer_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def build(isa: str) -> Path:
    """Download, compile, and put the library into the cache. Raises SystemExit with what failed."""
    if isa not in FEATURES:
        raise SystemExit(f"ggml is built for {', '.join(FEATURES)}, not {isa}")
    with tempfile.TemporaryDirectory() as folder:
        source, work = _source(Path(folder)), Path(folder) / "build"
        switches = {name: name in FEATURES[isa] for name in (*_X86, *_AVX512, "AVX_VNNI")}
        switches |= {"NATIVE": False, "OPENMP": False, "CCACHE": False}
        options = [f"-DGGML_{name}={'ON' if on else 'OFF'}" for name, on in switches.items()]
        _run(
            "cmake",
            "-S",
            str(toolchain.NATIVE / "ggml"),
            "-B",
            str(work),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DGGML_SOURCE={source}",
            *options,
        )
        _run("cmake", "--build", str(work), "--target", "ggml_peer", "--parallel", str(os.cpu_count() or 1))
        target = _library(isa)
        temporary = target.with_suffix(f".{os.getpid()}.tmp")
        shutil.copyfile(next(work.glob("libggml_peer.*")), temporary)
        os.replace(temporary, target)
    return target


def _library(isa: str) -> Path:
    return toolchain.cache_folder() / f"ggml-{VERSION}-{isa}.so"


def _source(folder: Path) -> Path:
    _run(
        *(_python_with_pip(), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE),
        *("--dest", str(folder), f"{PACKAGE}=={VERSION}"),
    )
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        members = [member for member in archive.getmembers() if INSIDE in member.name]
        archive.extractall(folder, members, filter="data")
    return next(folder.glob(f"*/{INSIDE}"))


def _python_with_pip() -> str:
    """The environment that bootstrap.py makes has none of its own."""
    return sys.executable if importlib.util.find_spec("pip") else sys._base_executable  # type: ignore[attr-defined]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--isa", choices=list(FEATURES), nargs="+", default=["avx2"], help="for which it is compiled"
    )
    for isa in parser.parse_args().isa:
        print(build(isa))
