"""The native library's kernels through ctypes; native/kernels/hybridkit_kernels.h says what they compute.

`load()` gives a `Native`: its methods take NumPy arrays, `matmul_at` and `conv_at` take addresses. Sizes and
attributes are checked here for what ctypes would cut off without a word, and by the library for what works.
Python's lock is released while a kernel runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import math
import operator
import os
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.activations import Activations
from hybridkit.runtime.library import VARIABLE, library_path

LowBit = Literal["ternary", "binary"]
Rows = LowBit | Literal["sparse34", "base3"]  # with a scale per row
Codec = Rows | Literal["nbit1", "nbit2", "nbit4", "nbit8"]
DType = Literal["float32", "float16", "bfloat16"]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
_NONE: Final = np.empty(0, np.uint8)

_CODECS: Final = ("ternary", "binary", "nbit1", "nbit2", "nbit4", "nbit8", "sparse34", "base3")
CODECS: Final = {name: number for number, name in enumerate(_CODECS)}  # of hybridkit_codec
_BLOCKS: Final = {"sparse34": (80,), "base3": (4, 16, 4)}  # of tiles, where they are not [16, 4]
ACTIVATIONS: Final = {"int8": 0, "float": 1}
DTYPES: Final = {"float32": 0, "float16": 1, "bfloat16": 2}
_MAX_SIZE: Final = 2**31 - 1  # HYBRIDKIT_MAX_SIZE: the largest N; no other size or attribute is larger
_MAX_ROWS: Final = 2**63 - 1
_NUMPY: Final = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


class Matrix(ctypes.Structure):
    """`hybridkit_matrix`: a packed matrix [N, K] at addresses that the caller keeps alive.

    `code_bytes` is the size of the codes: the kernels refuse codes that N and K do not fit.
    """

    _fields_ = (
        ("codec", c_int32),
        ("activations", c_int32),
        ("N", c_int64),
        ("K", c_int64),
        ("codes", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("code_bytes", c_size_t),
        ("group_size", c_int64),
        ("group_scale", c_void_p),
        ("scale_dtype", c_int32),
    )


class Convolution(ctypes.Structure):
    """`hybridkit_geometry`: a convolution over 1 to 3 spatial axes, attributes as ONNX has them."""

    _fields_ = (
        ("axes", c_int32),
        ("channels", c_int64),
        ("group", c_int64),
        ("size", c_int64 * 3),
        ("kernel", c_int64 * 3),
        ("stride", c_int64 * 3),
        ("dilation", c_int64 * 3),
        ("pad_begin", c_int64 * 3),
        ("pad_end", c_int64 * 3),
    )

    @classmethod
    def of(
        cls,
        channels: int,
        size: Sequence[int],
        kernel: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        group: int,
    ) -> Convolution:
        """From ONNX's attributes; `pads`: all begins, then all ends. Raises UsageError if they do not fit."""
        axes = len(size)
        if not (1 <= axes <= 3 and len(kernel) == len(strides) == len(dilations) == axes == len(pads) / 2):
            raise UsageError("a convolution has 1 to 3 spatial axes and as many numbers of each kind")
        vectors = (size, kernel, strides, dilations, pads[:axes], pads[axes:])
        numbers = (_sizes("sizes, kernels, strides, dilations and pads", *vector) for vector in vectors)
        channels, group = _sizes("channels and group", channels, group)
        return cls(axes, channels, group, *((c_int64 * 3)(*vector) for vector in numbers))


_FUNCTIONS: Final[dict[str, tuple[Any, list[Any]]]] = {
    "code_bytes": (c_size_t, [c_int32, c_int32, c_int64, c_int64]),
    "check_codes": (c_char_p, [c_int32, c_int32, c_void_p, c_size_t, c_int64, c_int64]),
    "tile": (c_char_p, [c_int32, c_void_p, c_int64, c_int64, c_void_p]),
    "matmul": (c_char_p, [POINTER(Matrix), c_int32, c_void_p, c_int64, c_void_p, c_void_p]),
    "conv_shape": (c_char_p, [POINTER(Convolution), c_int64, c_int64 * 3]),
    "conv_code_bytes": (c_size_t, [c_int32, c_int64, c_int64, c_int64]),
    "check_conv_codes": (c_char_p, [c_int32, c_void_p, c_size_t, c_int64, c_int64, c_int64]),
    "conv_tile": (c_char_p, [c_int32, c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p]),
    "conv": (
        c_char_p,
        [POINTER(Matrix), POINTER(Convolution), c_int32, c_void_p, c_int64, c_void_p, c_void_p],
    ),
    "isa": (c_char_p, []),
    "isa_available": (c_char_p, [c_int]),
    "set_isa": (c_char_p, [c_char_p]),
    "isa_warning": (c_char_p, []),
    "kernel": (c_char_p, [POINTER(Matrix), c_int64]),
    "tasks": (c_int64, [POINTER(Matrix), c_int64]),
    "thread_pool": (c_void_p, [c_int]),
    "version": (c_char_p, []),
}


def load() -> Native | None:
    """The native library, or None where there is none (see `hybridkit.runtime.library_path`).

    Raises FileError if the library is there and cannot be used.
    """
    return _load(os.environ.get(VARIABLE, ""))


@functools.cache  # products ask every time; finding the library reads the package's metadata
def _load(variable: str) -> Native | None:
    path = library_path()
    return None if path is None else Native(path)


class Native:
    """The functions of one loaded library. All of them may be called from several threads at once."""

    def __init__(self, path: Path) -> None:
        remedy = "HYBRIDKIT_LIBRARY=none does without it"
        try:
            library = ctypes.CDLL(str(path))
            functions = {name: getattr(library, f"hybridkit_{name}") for name in _FUNCTIONS}
        except OSError as error:
            raise FileError(f"cannot load the native library {path}: {error}; {remedy}") from error
        except AttributeError as error:
            raise FileError(f"{path} is not this version's native library: {error}; {remedy}") from error
        for name, (result, arguments) in _FUNCTIONS.items():
            functions[name].restype, functions[name].argtypes = result, arguments
        self.path = path
        self._call = functions
        # what products of torch call many times a second
        self._matmul, self._conv, self._pool = (functions[n] for n in ("matmul", "conv", "thread_pool"))

    @property
    def version(self) -> str:
        """The version of hybridkit that the library belongs to."""
        return _text(self._call["version"]())

    @property
    def isa(self) -> str:
        """The instruction set in use: scalar, avx2, avxvnni, avx512vnni, amx or neon."""
        return _text(self._call["isa"]())

    @property
    def isas(self) -> list[str]:
        """What this processor has of the library's instruction sets, best first."""
        names = map(self._call["isa_available"], itertools.count())
        return [_text(name) for name in itertools.takewhile(bool, names)]

    @property
    def isa_warning(self) -> str | None:
        """What was wrong with the environment variable HYBRIDKIT_ISA, which is then ignored."""
        warning = self._call["isa_warning"]()
        return None if warning is None else _text(warning)

    def set_isa(self, name: str) -> None:
        """Switch the whole process to another instruction set. Raises UsageError if it is not available."""
        _check(self._call["set_isa"](name.encode()))

    @contextlib.contextmanager
    def using_isa(self, name: str) -> Iterator[None]:
        """`set_isa`, and back at the end."""
        before = self.isa
        self.set_isa(name)
        try:
            yield
        finally:
            self.set_isa(before)

    def kernel(
        self, codec: Codec, activations: Activations, N: int, K: int, M: int, group_size: int = 0
    ) -> str:
        """Which kernel multiplies M rows: "stream" or "tile". group_size: of n-bit codes."""
        name = self._call["kernel"](_matrix(codec, activations, N, K, group_size=group_size), _rows(M))
        if name is None:
            raise UsageError(f"there is no product of {M} rows with a matrix [{N}, {K}]")
        return _text(name)

    def tasks(
        self, codec: Codec, activations: Activations, N: int, K: int, M: int, group_size: int = 0
    ) -> int:
        """Into how many parallel tasks a product of M rows is cut."""
        tasks = int(self._call["tasks"](_matrix(codec, activations, N, K, group_size=group_size), _rows(M)))
        if tasks == 0:
            raise UsageError(f"there is no product of {M} rows with a matrix [{N}, {K}]")
        return tasks

    def parallel(self, threads: int) -> int | None:
        """The address of the pool of `threads` threads; None is the calling thread alone."""
        address: int | None = self._pool(min(threads, _MAX_SIZE)) if threads > 1 else None
        return address

    def tile(self, codec: Rows, codes: Bytes, K: int) -> Bytes:
        """Row-major codes [N, bytes] -> tiles [ceil(N / 16), blocks, 16, 4]: layout 0 to 1.

        Of 3:4-sparse codes [ceil(N / 16), units, 80], of such in base 3 [ceil(N / 16), units, 4, 16, 4].
        """
        N, K = _sizes("N and K", len(codes), K)
        rows = self._codes(codec, codes, self._call["code_bytes"](CODECS[codec], 0, N, K))
        size = self._call["code_bytes"](CODECS[codec], 1, N, K)
        out = np.empty(size, np.uint8)
        _check(self._call["tile"](CODECS[codec], rows.ctypes.data, N, K, out.ctypes.data))
        return out.reshape(-(-N // 16), -1, *_BLOCKS.get(codec, (16, 4)))

    def conv_tile(self, codec: LowBit, codes: Bytes, K: int, group: int, positions: int) -> Bytes:
        """Row-major codes [N, bytes] -> tiles of a convolution with `positions` in its kernel: layout 2."""
        N, K, group, positions = _sizes("N, K, group and positions", len(codes), K, group, positions)
        size = self._call["conv_code_bytes"](CODECS[codec], N, K, group)
        if size == 0 or positions < 1 or K % positions:
            raise UsageError(
                f"a matrix [{N}, {K}] is no convolution of {group} groups and {positions} positions"
            )
        rows = self._codes(codec, codes, self._call["code_bytes"](CODECS[codec], 0, N, K))
        tiles = group * -(-(N // group) // 16)
        out = np.empty((tiles, size // 64 // tiles, 16, 4), np.uint8)
        at, to = rows.ctypes.data, out.ctypes.data
        _check(self._call["conv_tile"](CODECS[codec], at, N, K, group, positions, to))
        return out

    def check(self, codec: Rows, layout: Literal[0, 1], codes: Bytes, N: int, K: int) -> None:
        """Raise UsageError for codes of a wrong size or with an invalid digit."""
        codes, (N, K) = np.ascontiguousarray(codes, np.uint8), _sizes("N and K", N, K)
        _check(self._call["check_codes"](CODECS[codec], layout, codes.ctypes.data, codes.nbytes, N, K))

    def check_conv(self, codec: LowBit, codes: Bytes, N: int, K: int, group: int) -> None:
        """The same for layout 2."""
        codes = np.ascontiguousarray(codes, np.uint8)
        N, K, group = _sizes("N, K and group", N, K, group)
        _check(self._call["check_conv_codes"](CODECS[codec], codes.ctypes.data, codes.nbytes, N, K, group))

    def matmul(
        self,
        x: NDArray[Any],
        codes: Bytes,
        scale: Floats,
        bias: Floats,
        *,
        codec: Rows,
        activations: Activations,
        dtype: DType = "float32",
        threads: int = 1,
    ) -> NDArray[Any]:
        """x [..., K] with tiles of a matrix [N, K], scale and bias [N] -> [..., N] of x's type.

        dtype "bfloat16" stands for arrays of uint16 that hold its bits.
        """
        if x.ndim == 0:
            raise UsageError("x must have the shape [..., K], got []")
        x = np.ascontiguousarray(x, _NUMPY[dtype])
        scale, bias = _vectors(scale, bias)
        N, K = _sizes("N and K", len(scale), x.shape[-1])
        tiles = self._codes(codec, codes, self._call["code_bytes"](CODECS[codec], 1, N, K))
        y = np.empty((*x.shape[:-1], N), x.dtype)
        matrix = _matrix(codec, activations, N, K, tiles, scale, bias)
        rows = math.prod(x.shape[:-1])
        self.matmul_at(matrix, DTYPES[dtype], x.ctypes.data, rows, y.ctypes.data, self.parallel(threads))
        return y

    def conv(
        self,
        x: NDArray[Any],
        codes: Bytes,
        scale: Floats,
        bias: Floats,
        geometry: Convolution,
        *,
        codec: LowBit,
        activations: Activations,
        dtype: DType = "float32",
        threads: int = 1,
    ) -> NDArray[Any]:
        """x [batch, C, *size] with tiles of layout 2, scale and bias [N] -> [batch, N, *out] of x's type."""
        scale, bias = _vectors(scale, bias)
        out, N = self.conv_shape(geometry, len(scale)), len(scale)
        if x.shape[1:] != (geometry.channels, *geometry.size[: geometry.axes]):
            raise UsageError(f"the geometry is of another input than {list(x.shape)}")
        x = np.ascontiguousarray(x, _NUMPY[dtype])
        K = geometry.channels // geometry.group * math.prod(geometry.kernel[: geometry.axes])
        N, K = _sizes("N and K", N, K)
        size = self._call["conv_code_bytes"](CODECS[codec], N, K, geometry.group)
        tiles = self._codes(codec, codes, size)
        y = np.empty((len(x), N, *out), x.dtype)
        matrix = _matrix(codec, activations, N, K, tiles, scale, bias)
        at, to = x.ctypes.data, y.ctypes.data
        self.conv_at(matrix, geometry, DTYPES[dtype], at, len(x), to, self.parallel(threads))
        return y

    def conv_shape(self, geometry: Convolution, N: int) -> tuple[int, ...]:
        """The spatial sizes of the output. Raises UsageError for a geometry that does not work."""
        out, (N,) = (c_int64 * 3)(), _sizes("N", N)
        _check(self._call["conv_shape"](geometry, N, out))
        return tuple(out[: geometry.axes])

    def matmul_at(
        self, matrix: Matrix, dtype: int, x: int, M: int, y: int, parallel: int | None = None
    ) -> None:
        """`hybridkit_matmul` on addresses of contiguous memory, which are taken as they are."""
        _check(self._matmul(matrix, dtype, x, M, y, parallel))

    def conv_at(
        self,
        matrix: Matrix,
        geometry: Convolution,
        dtype: int,
        x: int,
        batch: int,
        y: int,
        parallel: int | None = None,
    ) -> None:
        """`hybridkit_conv` on addresses of contiguous memory, which are taken as they are."""
        _check(self._conv(matrix, geometry, dtype, x, batch, y, parallel))

    def _codes(self, codec: Rows, codes: Bytes, size: int) -> Bytes:
        codes = np.ascontiguousarray(codes, np.uint8)
        if size == 0 or codes.nbytes != size:
            raise UsageError(f"the {codec} codes have {codes.nbytes} bytes, the layer's shape needs {size}")
        return codes


def _matrix(
    codec: Codec,
    activations: Activations,
    N: int,
    K: int,
    codes: Bytes = _NONE,
    *vectors: Floats,
    group_size: int = 0,
) -> Matrix:
    """A matrix of arrays that the caller keeps alive; without them it has types and sizes only."""
    N, K = _sizes("N and K", N, K)
    arrays: tuple[NDArray[Any], ...] = (codes, *vectors)
    at = (array.ctypes.data for array in arrays)
    kinds, (group_size,) = (CODECS[codec], ACTIVATIONS[activations]), _sizes("group_size", group_size)
    return Matrix(*kinds, N, K, *at, code_bytes=codes.nbytes, group_size=group_size)


def _sizes(names: str, *numbers: int) -> tuple[int, ...]:
    """The numbers, for ctypes, which cuts larger ones off. Raises UsageError, naming them by `names`."""
    try:
        found = tuple(map(operator.index, numbers))
    except TypeError:
        raise UsageError(f"{names} must be integers, got {list(numbers)}") from None
    if any(not 0 <= number <= _MAX_SIZE for number in found):
        raise UsageError(f"{names} must be from 0 to {_MAX_SIZE}, got {list(found)}")
    return found


def _rows(M: int) -> int:
    if not isinstance(M, int) or not 0 <= M <= _MAX_ROWS:
        raise UsageError(f"M must be an integer from 0 to {_MAX_ROWS}, got {M!r}")
    return M


def _vectors(scale: Floats, bias: Floats) -> tuple[Floats, Floats]:
    if scale.shape != bias.shape or scale.ndim != 1:
        raise UsageError(f"scale {list(scale.shape)} and bias {list(bias.shape)} must both be [N]")
    return np.ascontiguousarray(scale, np.float32), np.ascontiguousarray(bias, np.float32)


def _check(message: bytes | None) -> None:
    if message is not None:
        raise UsageError(_text(message))


def _text(message: bytes) -> str:
    return message.decode()
