"""Running packed models: ONNX Runtime session, torch operators and modules. Imports without torch."""

from hybridkit.runtime.library import library_path, register
from hybridkit.runtime.session import session

__all__ = ["library_path", "register", "session"]
