"""This machine's limits: read bandwidths and instruction peaks, and the floors that follow from them."""

from __future__ import annotations

import ctypes
import math
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import toolchain

DRAM_BYTES = 256 << 20  # a thread reads that much: more than the last cache by far


@dataclass(frozen=True)
class Limits:
    """Of `threads` threads together: bytes per second read, operations per second (a multiply-add is two)."""

    threads: int
    dram: float  # 4 KiB pages
    dram_huge: float  # 2 MiB pages
    l3: float
    l2: float
    int8: float
    fp32: float

    def __str__(self) -> str:
        g = {name: value / 1e9 for name, value in asdict(self).items()}
        return (
            f"DRAM {g['dram']:.1f} GB/s ({g['dram_huge']:.1f} on huge pages), L3 {g['l3']:.0f}, "
            f"L2 {g['l2']:.0f}, int8 {g['int8']:.0f} GOP/s, fp32 {g['fp32']:.0f} GFLOP/s"
        )


@dataclass(frozen=True)
class Caches:
    """Bytes: L2 of one core, the whole L3."""

    l2: int
    l3: int


def measure(isa: str, threads: int) -> Limits:
    """About two seconds. `isa` names the instructions, as the kernels do; the processor must have them."""
    bench, caches = native(), this_machines_caches()
    read = bench.bench_read_bandwidth
    return Limits(
        threads=threads,
        dram=read(DRAM_BYTES, threads, 0),
        dram_huge=read(DRAM_BYTES, threads, 1),
        l3=read(_whole(max(caches.l3 // 4 // threads, 2 * caches.l2)), threads, 1),
        l2=read(_whole(caches.l2 // 2), threads, 1),
        int8=bench.bench_int8_peak(isa.encode(), threads),
        fp32=bench.bench_fp32_peak(isa.encode(), threads),
    )


def floor_seconds(
    limits: Limits,
    caches: Caches,
    *,
    m: int,
    n: int,
    k: int,
    code_bytes: int,
    mode: str,
    cold: bool,
    huge: bool = False,
) -> float:
    """The least that one product can take: reading the codes or doing the arithmetic, whichever takes longer.

    mode: "int8" or "float". cold: the codes come from memory (`huge`: on huge pages), else from the smallest
    cache of `threads` cores that holds them.
    """
    dram = limits.dram_huge if huge else limits.dram
    if cold or code_bytes > caches.l3:
        bandwidth = dram
    else:
        bandwidth = limits.l2 if code_bytes <= caches.l2 * limits.threads // 2 else limits.l3
    peak = limits.int8 if mode == "int8" else limits.fp32
    return max(code_bytes / bandwidth, 2 * m * n * k / peak)


@cache
def this_machines_caches() -> Caches:
    """As Linux tells them; 512 KiB and 32 MiB where it does not."""
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            sizes[level] = int(size.removesuffix("K")) << 10
    return Caches(sizes.get("2", 512 << 10), sizes.get("3", 32 << 20))


def _whole(size: int) -> int:
    return max(256, math.floor(size / 256) * 256)


@cache
def native() -> ctypes.CDLL:
    """native/limits.cc."""
    library = toolchain.build("limits")
    library.bench_allocate.restype = ctypes.c_void_p
    library.bench_allocate.argtypes = [ctypes.c_size_t, ctypes.c_int]
    library.bench_free.argtypes = [ctypes.c_void_p]
    library.bench_read_bandwidth.restype = ctypes.c_double
    library.bench_read_bandwidth.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
    for name in ("bench_int8_peak", "bench_fp32_peak"):
        getattr(library, name).restype = ctypes.c_double
        getattr(library, name).argtypes = [ctypes.c_char_p, ctypes.c_int]
    return library
