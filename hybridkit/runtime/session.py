"""A ready ONNX Runtime session for an exported model, without torch."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridkit.errors import FileError, UsageError
from hybridkit.memory import give_back_memory
from hybridkit.options import nearest
from hybridkit.runtime.library import register

if TYPE_CHECKING:
    import onnxruntime

_MOST_THREADS = 1024  # as of the native library's pools

# Without native operators ONNX Runtime unpacks a two-bit weight to fp32 when it loads (constant folding) and
# keeps what it needed on the way: 70 bytes of memory per byte of file. Told to leave the operators' bodies
# alone, it unpacks at every run instead. Measured with 16 layers of 2048 x 2048 (17 MB), ORT 1.32, 1 thread,
# batch 1:
#   unpacked at load   load 5.2 s    1.15 GB     15 ms a run
#   unpacked at run    load 0.1 s    0.13 GB    909 ms a run
# constant_folding_max_output_size_in_bytes gives the second row too, with a warning per layer.
_MEMORY_PER_BYTE = 70
_KEEP_BODIES = "session.disable_aot_function_inlining"


def session(
    path: str | os.PathLike[str],
    threads: int | None = None,
    *,
    native: bool = True,
    low_memory: bool | None = None,
    **options: Any,
) -> onnxruntime.InferenceSession:
    """An `onnxruntime.InferenceSession` on the CPU for the model at `path`.

    threads: of one operator; None takes OMP_NUM_THREADS, or else one per physical core.
    native: run the native operators, which read packed weights as they are, where the native library is
    there (`library_path`). Elsewhere portable bodies run. Results are the same (in float mode: to fp32
    rounding).
    low_memory: about weights that portable bodies unpack (with the library n-bit convolutions, without it
    all). True keeps them packed and unpacks them at every run (slow), False unpacks them once (about 70
    bytes of memory per byte of file). None: False with the library, and where that fits into half of the
    memory that is free.
    options: attributes of `onnxruntime.SessionOptions`, such as `log_severity_level=3`.

    Raises FileError if the file is missing or is not a model that this ONNX Runtime can run, UsageError for
    an option that does not exist, and what `register` raises.
    """
    import onnxruntime as ort

    file = Path(path)
    if not file.is_file():
        raise FileError(f"there is no model file {file}")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = _threads(threads)
    registered = native and register(settings)
    if low_memory or (low_memory is None and not registered and not _fits_unpacked(file)):
        settings.add_session_config_entry(_KEEP_BODIES, "1")
    for name, value in options.items():
        _set(settings, name, value)
    try:
        made = ort.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        reason = " ".join(str(error).split())
        raise FileError(f"ONNX Runtime {ort.__version__} cannot load {file}: {reason}") from error
    give_back_memory()
    return made


def _threads(threads: int | None) -> int:
    """0 lets ONNX Runtime choose."""
    if threads is None:
        first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        return min(int(first), _MOST_THREADS) if first.isdecimal() else 0
    if not 1 <= threads <= _MOST_THREADS:
        raise UsageError(f"threads={threads}: there must be at least one and at most {_MOST_THREADS}")
    return threads


def _fits_unpacked(file: Path) -> bool:
    import psutil

    external = file.parent.glob(f"{glob.escape(file.name)}.*data")
    size = sum(part.stat().st_size for part in (file, *external))
    free: int = psutil.virtual_memory().available
    return size * _MEMORY_PER_BYTE <= free // 2


def _set(settings: onnxruntime.SessionOptions, name: str, value: Any) -> None:
    known = [n for n in dir(settings) if not n.startswith("_") and not callable(getattr(settings, n))]
    if name not in known:
        raise UsageError(f"onnxruntime.SessionOptions has no {name!r}; {nearest(name, known)}")
    try:
        setattr(settings, name, value)
    except TypeError:
        raise UsageError(f"onnxruntime.SessionOptions.{name} cannot be {value!r}") from None
