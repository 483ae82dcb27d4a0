"""Running packed models: ONNX Runtime session, torch operators and modules. Imports without torch."""

from hybridkit.runtime.session import session

__all__ = ["session"]
