"""The kernels alone, through their C interface: `Layer` is one packed layer in one or many copies."""

from __future__ import annotations

import ctypes
import itertools
import math
from functools import cache
from statistics import median
from typing import Final

import limits
import numpy as np
import toolchain

from hybridkit.packing.tiles import tiled_shape
from hybridkit.runtime.native import ACTIVATIONS, CODECS, Matrix, Native

BITS: Final = {"ternary": 2, "binary": 1}
# A two-bit digit is 0, 1 or 2; a bit is anything.
_VALID: Final = {
    "ternary": bytes(a + 4 * b + 16 * c + 64 * d for a, b, c, d in itertools.product(range(3), repeat=4)),
    "binary": bytes(range(256)),
}


class Layer:
    """`copies` layers [n, k] of random codes, each with memory of its own; freed by `close`."""

    def __init__(
        self, native: Native, n: int, k: int, *, codec: str, mode: str, copies: int, huge: bool = True
    ) -> None:
        self.native, self.n, self.k, self.copies = native, n, k, copies
        size = code_bytes(codec, n, k)
        step = -(-size // 64) * 64
        self._codes = limits.native().bench_allocate(step * copies, int(huge))
        if not self._codes:
            raise MemoryError
        valid = _VALID[codec]
        timing().bench_fill(self._codes, step * copies, valid, len(valid), 1)
        self._scale, self._bias = np.full(n, 0.01, np.float32), np.zeros(n, np.float32)
        kind, vectors = (CODECS[codec], ACTIVATIONS[mode]), (self._scale.ctypes.data, self._bias.ctypes.data)
        self.matrices = (Matrix * copies)(
            *(Matrix(*kind, n, k, self._codes + i * step, *vectors, size) for i in range(copies))
        )

    def products(self, m: int, threads: int) -> Products:
        """The products of m rows with the copies, one a call, in turn."""
        return Products(self, m, threads)

    def close(self) -> None:
        """Frees the codes."""
        limits.native().bench_free(self._codes)


class Products:
    """What `Layer.products` gives; see timed.Timed."""

    products = 1

    def __init__(self, layer: Layer, m: int, threads: int) -> None:
        self.layer, self.m, self._done = layer, m, 0
        self._pool = layer.native.parallel(threads)
        self._x = np.random.default_rng(m).standard_normal((m, layer.k), np.float32)
        self._y = np.empty((m, layer.n), np.float32)
        self._matmul = ctypes.CDLL(str(layer.native.path)).hybridkit_matmul

    def seconds(self, calls: int) -> float:
        """The median time of a call, in seconds."""
        found, layer = np.empty(calls), self.layer
        x, y, nanoseconds = (array.ctypes.data for array in (self._x, self._y, found))
        copies = layer.matrices, layer.copies, self._done
        error = timing().bench_matmul(self._matmul, *copies, x, self.m, y, self._pool, calls, nanoseconds)
        if error:
            raise SystemExit(error.decode())
        self._done += calls
        return median(found) * 1e-9


def code_bytes(codec: str, n: int, k: int) -> int:
    """Bytes of the tiled codes."""
    return math.prod(tiled_shape(n, k, BITS[codec]))


@cache
def timing() -> ctypes.CDLL:
    """native/timing.cc."""
    library = toolchain.build("timing")
    i64, p = ctypes.c_int64, ctypes.c_void_p
    library.bench_matmul.restype = ctypes.c_char_p
    library.bench_matmul.argtypes = [p, p, i64, i64, p, i64, p, p, i64, p]
    library.bench_fill.argtypes = [p, i64, ctypes.c_char_p, i64, ctypes.c_uint64]
    return library
