"""The kernels alone, through their C interface: `Layer` is one packed layer in one or many copies."""

from __future__ import annotations

import ctypes
import itertools
from functools import cache
from pathlib import Path
from statistics import median
from typing import Final

import limits
import toolchain

CODECS: Final = {"ternary": 0, "binary": 1}
MODES: Final = {"int8": 0, "float": 1}
LAYOUT: Final = 1
# A two-bit digit is 0, 1 or 2; a bit is anything.
_VALID: Final = {
    "ternary": bytes(a + 4 * b + 16 * c + 64 * d for a, b, c, d in itertools.product(range(3), repeat=4)),
    "binary": bytes(range(256)),
}


class Matrix(ctypes.Structure):
    """hybridkit_matrix."""

    _fields_ = (
        ("codec", ctypes.c_int32),
        ("activations", ctypes.c_int32),
        ("N", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class Kernels:
    """A native library by path. Raises SystemExit if it cannot be loaded or lacks the instruction set `isa`."""

    def __init__(self, path: Path, isa: str | None = None) -> None:
        try:
            self.library = ctypes.CDLL(str(path.resolve()))
        except OSError as error:
            raise SystemExit(f"{path} cannot be loaded: {error}") from None
        i32, i64, p = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
        for name, result, arguments in (
            ("code_bytes", ctypes.c_size_t, (i32, i32, i64, i64)),
            ("isa", ctypes.c_char_p, ()),
            ("set_isa", ctypes.c_char_p, (ctypes.c_char_p,)),
            ("kernel", ctypes.c_char_p, (p, i64)),
            ("tasks", i64, (p, i64)),
            ("thread_pool", p, (ctypes.c_int,)),
        ):
            function = getattr(self.library, f"hybridkit_{name}")
            function.restype, function.argtypes = result, list(arguments)
        if isa is not None and (error := self.library.hybridkit_set_isa(isa.encode())):
            raise SystemExit(error.decode())

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self.library.hybridkit_isa().decode())


class Layer:
    """`copies` layers [n, k] of random codes, each with memory of its own; freed by `close`."""

    def __init__(
        self, kernels: Kernels, n: int, k: int, *, codec: str, mode: str, copies: int, huge: bool = True
    ) -> None:
        self.kernels, self.n, self.k, self.copies = kernels, n, k, copies
        self.code_bytes = int(kernels.library.hybridkit_code_bytes(CODECS[codec], LAYOUT, n, k))
        step = -(-self.code_bytes // 64) * 64
        self._codes = limits.native().bench_allocate(step * copies, int(huge))
        if not self._codes:
            raise MemoryError
        valid = _VALID[codec]
        timing().bench_fill(self._codes, step * copies, valid, len(valid), 1)
        self._scale, self._bias = (ctypes.c_float * n)(*[0.01] * n), (ctypes.c_float * n)()
        self.matrices = (Matrix * copies)(
            *(
                Matrix(
                    CODECS[codec],
                    MODES[mode],
                    n,
                    k,
                    self._codes + i * step,
                    ctypes.addressof(self._scale),
                    ctypes.addressof(self._bias),
                )
                for i in range(copies)
            )
        )

    def close(self) -> None:
        """Frees the codes."""
        limits.native().bench_free(self._codes)

    def kernel(self, m: int) -> str:
        """Which kernel runs m rows."""
        return str(self.kernels.library.hybridkit_kernel(self.matrices, m).decode())

    def tasks(self, m: int) -> int:
        """Into how many tasks it is cut."""
        return int(self.kernels.library.hybridkit_tasks(self.matrices, m))

    def seconds(self, m: int, threads: int, budget: float, rounds: int = 5) -> float:
        """The median over `rounds` of a call's median time, `budget` seconds of measuring in all.

        The copies take turns: enough of them keep the codes out of the caches.
        """
        x = _floats(m * self.k, lambda i: ((i * 2654435761) % 4096) / 2048 - 1)
        y = (ctypes.c_float * (m * self.n))()
        pool = self.kernels.library.hybridkit_thread_pool(threads) if threads > 1 else None

        done = 0

        def run(calls: int) -> float:
            nonlocal done
            found = (ctypes.c_double * calls)()
            matmul = self.kernels.library.hybridkit_matmul
            error = timing().bench_matmul(
                matmul, self.matrices, self.copies, done, x, m, y, pool, calls, found
            )
            if error:
                raise SystemExit(error.decode())
            done += calls
            return median(found) * 1e-9

        once = run(3)
        calls = max(3, min(100_000, int(budget / rounds / once)))
        return median(run(calls) for _ in range(rounds))


def _floats(count: int, value: object) -> object:
    period = [value(i) for i in range(min(count, 8191))]  # type: ignore[operator]
    return (ctypes.c_float * count)(*itertools.islice(itertools.cycle(period), count))


@cache
def timing() -> ctypes.CDLL:
    """native/timing.cc."""
    library = toolchain.build("timing")
    i64, p = ctypes.c_int64, ctypes.c_void_p
    library.bench_matmul.restype = ctypes.c_char_p
    library.bench_matmul.argtypes = [p, p, i64, i64, p, i64, p, p, i64, p]
    library.bench_fill.argtypes = [p, i64, ctypes.c_char_p, i64, ctypes.c_uint64]
    return library
