"""Where the native library is, and how ONNX Runtime gets its operators from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import hybridkit
from hybridkit.errors import FileError, HybridkitError

if TYPE_CHECKING:
    import onnxruntime

VARIABLE: Final = "HYBRIDKIT_LIBRARY"
_NAMES: Final = ("libhybridkit.so", "libhybridkit.dylib", "libhybridkit.dll")
_OLDEST: Final = (1, 17)  # the first with parallel loops and shape inference for custom operators


def library_path() -> Path | None:
    """The native library, with kernels and ONNX Runtime operators in it; None where there is none.

    The environment variable HYBRIDKIT_LIBRARY names another file, or `none` for doing without.
    Raises FileError if it names a file that does not exist.
    """
    named = os.environ.get(VARIABLE, "")
    if named.lower() == "none":
        return None
    if named:
        path = Path(named)
        if not path.is_file():
            raise FileError(f"{VARIABLE} names {path}, which is not there; `none` does without the library")
        return path.absolute()
    # an editable install has two folders: the sources in the checkout, what was compiled in site-packages
    paths = [Path(folder, "_native", name) for folder in hybridkit.__path__ for name in _NAMES]
    return next((path for path in paths if path.is_file()), None)


def register(session_options: onnxruntime.SessionOptions) -> bool:
    """Gives sessions with these options the native operators; False where there is no native library.

    Options that have them already stay as they are. A model with our operators runs without them, too, by
    the portable bodies that it carries: int8 results are the same bit for bit.
    Raises HybridkitError if this ONNX Runtime is older than 1.17, FileError if it cannot load the library.
    """
    import onnxruntime as ort

    path = library_path()
    if path is None:
        return False
    if _version(ort.__version__) < _OLDEST:
        raise HybridkitError(
            f"the native operators need ONNX Runtime 1.17 or newer, this is {ort.__version__}; "
            f"{VARIABLE}=none runs portable bodies"
        )
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        reason = " ".join(str(error).split())
        message = f"ONNX Runtime {ort.__version__} cannot load {path}: {reason}"
        raise FileError(f"{message}; {VARIABLE}=none runs portable bodies") from error
    return True


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
