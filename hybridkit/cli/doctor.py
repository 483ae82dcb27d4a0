"""`hybridkit doctor`: what this installation has and lacks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hybridkit.cli._shared import JsonOption, emit_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridkit.doctor import Report


def command(json: JsonOption = False) -> None:
    """Show versions, the native library and its instruction set, ONNX Runtime, threads and GPU.

    Everything works without the native library, only slower; the exit code is 0 with and without it.
    """
    from hybridkit.doctor import diagnose

    report = diagnose()
    if json:
        emit_json("doctor", dataclasses.asdict(report))
        return
    for heading, text in _rows(report):
        print(f"{heading:<16} {text}")
    for problem in report.problems:
        print(f"! {problem}")


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    from hybridkit.doctor import EXAMPLE

    yield "Packages", ", ".join(f"{name} {version}" for name, version in report.packages.items())
    yield "System", f"{report.system}, Python {report.python}"
    features = f" ({', '.join(report.features)})" if report.features else ""
    yield "Processor", f"{report.processor}, {report.cores} cores{features}"
    library = report.library
    if library is None:
        yield "Native library", "none"
    else:
        yield "Native library", f"{library.path}, version {library.version}"
        yield (
            "Instruction set",
            f"{library.instruction_set}; there are {', '.join(library.instruction_sets)}",
        )
        kernels = ", ".join(f"{kernel} for {rows}" for rows, kernel in library.kernels.items())
        yield "Kernels", f"{kernels} rows, of a {EXAMPLE[0]} x {EXAMPLE[1]} ternary int8 layer"
        yield "ONNX Runtime", "takes the native operators" if library.operators else "runs portable bodies"
    cores = "one for each physical core, where nothing else is asked for"
    yield "Threads", cores if report.threads is None else f"{report.threads}, says OMP_NUM_THREADS"
    yield "Huge pages", report.huge_pages or "unknown"
    driver = f"NVIDIA driver {report.nvidia_driver}" if report.nvidia_driver else "no NVIDIA driver"
    yield "GPU", f"{driver}, {'Triton' if report.triton else 'no Triton'}"
