"""What a result depends on besides its configuration: recorded with every run."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

# A run resumed where one of these differs need not be bit-identical.
DECISIVE = ("torch", "instruction_set", "threads", "device", "processes")


def environment(device: str = "cpu", processes: int = 1) -> dict[str, Any]:
    """Git commit of the current directory (None outside a checkout), versions, processor, threads."""
    import numpy
    import torch

    return {
        "git_commit": git_commit(),
        "hybridkit": version("hybridkit"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processes": processes,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs and may change the bits of a resumed run, as 'torch 2.9 -> 2.13'."""
    before = {"processes": 1, **before}
    return [
        f"{key} {before.get(key)} -> {now.get(key)}" for key in DECISIVE if before.get(key) != now.get(key)
    ]


def git_commit() -> str | None:
    """The commit of the current directory; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
            cwd=os.getcwd(),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def processor() -> str:
    """The name of the processor."""
    return cpu_info().get("model name") or platform.processor() or platform.machine()


def cpu_info() -> dict[str, str]:
    """What Linux says of the first core; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    parts = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip().lower(): value.strip() for name, _, value in parts}
