"""What this installation has and lacks: versions, the native library, processor, threads, memory, GPU.

Imports neither torch nor onnx: versions come from the installed packages' metadata.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import hybridkit
from hybridkit.bench.machine import this_machine
from hybridkit.errors import HybridkitError
from hybridkit.runtime.library import VARIABLE, register

if TYPE_CHECKING:
    from hybridkit.runtime.native import Native

REMEDY: Final = (
    "to get it, install a C++17 compiler (such as g++), then hybridkit again with "
    "`pip install --force-reinstall --no-deps --no-cache-dir`, or `pip install -e .` in a checkout"
)
EXAMPLE: Final = (2560, 2560)  # the layer whose kernels are told
ROWS: Final = (1, 8, 128)
_HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_DRIVER: Final = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Library:
    """The native library as it is loaded into this process.

    kernels: which kernel multiplies so many rows with a ternary layer of EXAMPLE's size under int8.
    operators: ONNX Runtime takes its operators.
    """

    path: Path
    version: str
    instruction_set: str
    instruction_sets: list[str]
    kernels: dict[int, str]
    operators: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What `diagnose` found. None stands for what is not there; `problems` are sentences."""

    python: str
    system: str
    packages: dict[str, str]
    processor: str
    features: tuple[str, ...]
    cores: int
    threads: int | None
    huge_pages: str | None
    triton: bool
    nvidia_driver: str | None
    library: Library | None
    problems: list[str]


def diagnose() -> Report:
    """Look at everything; nothing that is missing or broken is an error."""
    machine = this_machine()
    problems: list[str] = []
    library = _library(problems)
    return Report(
        python=machine.python,
        system=machine.system,
        packages=machine.versions,
        processor=machine.processor,
        features=machine.instruction_set,
        cores=machine.cores,
        threads=_threads(),
        huge_pages=_huge_pages(),
        triton=importlib.util.find_spec("triton") is not None,
        nvidia_driver=_nvidia_driver(),
        library=library,
        problems=problems,
    )


def _library(problems: list[str]) -> Library | None:
    from hybridkit.runtime.native import load

    try:
        native = load()
    except HybridkitError as error:
        problems.append(str(error))
        return None
    if native is None:
        problems.append(_why_none())
        return None
    if native.version != hybridkit.__version__:
        problems.append(
            f"{native.path} belongs to hybridkit {native.version}, this is {hybridkit.__version__}; "
            "install hybridkit again"
        )
    if native.isa_warning:
        problems.append(f"HYBRIDKIT_ISA={os.environ.get('HYBRIDKIT_ISA', '')}: {native.isa_warning}")
    return Library(
        path=native.path,
        version=native.version,
        instruction_set=native.isa,
        instruction_sets=native.isas,
        kernels=_kernels(native),
        operators=_operators(problems),
    )


def _why_none() -> str:
    means = "the portable bodies of the operators run instead: slower, with the same results"
    if os.environ.get(VARIABLE, "").lower() == "none":
        return f"{VARIABLE}=none leaves out the native library; {means}"
    return f"there is no native library; {means}; {REMEDY}"


def _kernels(native: Native) -> dict[int, str]:
    rows, columns = EXAMPLE
    return {m: native.kernel("ternary", "int8", rows, columns, m) for m in ROWS}


def _operators(problems: list[str]) -> bool:
    """Whether ONNX Runtime takes the library: it is tried."""
    try:
        import onnxruntime as ort

        return register(ort.SessionOptions())
    except (HybridkitError, ImportError) as error:
        problems.append(str(error))
        return False


def _threads() -> int | None:
    """What OMP_NUM_THREADS says, if it says anything: sessions and torch follow it."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() else None


def _huge_pages() -> str | None:
    """The kernel's setting: always, madvise or never."""
    try:
        chosen = re.search(r"\[(\w+)\]", _HUGE_PAGES.read_text())
    except OSError:
        return None
    return chosen[1] if chosen else None


def _nvidia_driver() -> str | None:
    try:
        version = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text())
    except OSError:
        return None
    return version[0] if version else None
