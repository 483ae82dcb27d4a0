"""The oldest ONNX Runtime that a model loads in: what each release takes, tried with its wheel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from hybridkit.errors import HybridkitError

Version = tuple[int, int]

OLDEST: Final = (1, 20)  # that hybridkit supports
# the first release with an opset, a version of the file format, and MatMulNBits of so many bits
_OPSETS: Final = {22: (1, 21), 23: (1, 23), 24: (1, 24)}
_FORMATS: Final = {11: (1, 23), 12: (1, 24)}
_BITS: Final = {2: (1, 24), 8: (1, 23)}
_INT8: Final = {2: (1, 24), 8: (1, 22)}  # with accuracy_level 4


def oldest_runtime(model: ir.Model) -> str:
    """The version as text, `1.20` at least; of opsets and formats newer than the tables, their last entry."""
    return _text(max((OLDEST, *_needs(model))))


def check_runtime(needed: str) -> None:
    """Raise HybridkitError where the installed ONNX Runtime is older."""
    import onnxruntime

    installed: str = onnxruntime.__version__
    if tuple(map(int, installed.split(".")[:2])) < tuple(map(int, needed.split("."))):
        other = "" if needed == _text(OLDEST) else ", or take other bits"
        raise HybridkitError(
            f"the quantised model needs ONNX Runtime {needed}, and this is {installed}; "
            f"upgrade onnxruntime{other}"
        )


def _needs(model: ir.Model) -> Iterator[Version]:
    yield _of(_OPSETS, model.graph.opset_imports.get("", 0))
    yield _of(_FORMATS, model.ir_version)
    for node in model.graph.all_nodes():
        if node.op_type == "MatMulNBits":
            bits, level = (node.attributes.get_int(name, 0) for name in ("bits", "accuracy_level"))
            yield (_INT8 if level == 4 else _BITS).get(bits, OLDEST)


def _of(releases: dict[int, Version], version: int) -> Version:
    return max((release for since, release in releases.items() if since <= version), default=OLDEST)


def _text(version: Version) -> str:
    return ".".join(map(str, version))
