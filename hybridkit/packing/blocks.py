"""What codecs share: the checks of the arrays that they get, and rows handled some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError, UsageError

AT_ONCE: Final = 1 << 20  # codes handled at a time: bounds the temporary arrays


def check_codes(name: str, codes: NDArray[Any]) -> None:
    """Raise UsageError unless these are int8 [N, K]."""
    if codes.ndim != 2 or codes.dtype != np.int8:
        raise UsageError(f"{name} packs int8 codes [N, K], not {codes.dtype} {list(codes.shape)}")


def check_packed(name: str, packed: NDArray[Any], row_bytes: int, K: int) -> None:
    """Raise FileError unless these are uint8 [N, row_bytes], as rows of K codes have them."""
    if packed.ndim != 2 or packed.dtype != np.uint8 or packed.shape[1] != row_bytes:
        raise FileError(
            f"{name} codes of {K} columns are uint8 [N, {row_bytes}], not {packed.dtype} {list(packed.shape)}"
        )


def row_blocks(N: int, K: int) -> Iterator[slice]:
    """Ranges of rows that together are all N."""
    step = max(1, AT_ONCE // max(K, 1))
    return (slice(start, start + step) for start in range(0, N, step))
