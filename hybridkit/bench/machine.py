"""Where a measurement was made: recorded with every result. Imports neither torch nor onnxruntime."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from hybridkit.training.environment import cpu_info, git_commit, processor

PACKAGES = ("hybridkit", "torch", "onnxruntime", "onnx", "numpy", "scikit-learn")
# What a matrix kernel may be chosen by, as Linux spells it.
FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine and the software on it. `git_commit` is None outside a checkout."""

    processor: str
    instruction_set: tuple[str, ...]
    cores: int
    memory_gib: float
    system: str
    python: str
    versions: dict[str, str]
    git_commit: str | None


def this_machine() -> Machine:
    """The machine this process runs on."""
    import psutil

    return Machine(
        processor=processor(),
        instruction_set=_instruction_set(),
        cores=available_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: found for name in PACKAGES if (found := _version(name)) is not None},
        git_commit=git_commit(),
    )


def available_cores() -> int:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _instruction_set() -> tuple[str, ...]:
    """Those of FEATURES that the processor has; empty where the system does not say."""
    found = cpu_info()
    present = found.get("flags", found.get("features", "")).split()
    return tuple(feature for feature in FEATURES if feature in present)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
