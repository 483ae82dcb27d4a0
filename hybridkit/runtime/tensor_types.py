"""The tensor types of ONNX Runtime that NumPy has, by the names that a session gives them."""

from __future__ import annotations

from typing import Final

import numpy as np

NUMPY_TYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}
