"""Reading an ONNX file, and raising its opset to what our operators' bodies need."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx_ir as ir
from onnx_ir.passes import common as passes

from hybridkit.errors import FileError, HybridkitError
from hybridkit.exporting.door import Admitted, one_line
from hybridkit.exporting.functions import MIN_OPSET

LOCAL_FUNCTIONS: Final = 8  # the first version of the file format that has them


def load(source: Admitted) -> ir.Model:
    """The graph; weights in other files are read when they are needed. Raises FileError where it has parts
    that this package does not know.
    """
    try:
        model = ir.from_proto(source.model)
    except Exception as error:  # onnx-ir's readers raise what they like
        raise FileError(f"{source.path} holds what cannot be read: {one_line(error)}") from error
    passes.RemoveInitializersFromInputsPass()(model)  # old files list every weight as an input too
    return model


def raise_opset(model: ir.Model, path: Path) -> ir.Model:
    """The model with opset 18 or newer and local functions. Raises HybridkitError where it has none such."""
    opset = model.graph.opset_imports[""]
    if opset < MIN_OPSET:
        from onnxscript.version_converter import ConvertVersionPass

        try:
            model = ConvertVersionPass(MIN_OPSET, fallback=True)(model).model
        except Exception as error:  # the converter's own errors and those of the graph checker behind it
            raise _too_old(path, opset, f": {one_line(error)}") from error
        if model.graph.opset_imports[""] < MIN_OPSET:
            raise _too_old(path, opset, "")
    model.ir_version = max(model.ir_version, LOCAL_FUNCTIONS)
    return model


def _too_old(path: Path, opset: int, why: str) -> HybridkitError:
    return HybridkitError(
        f"{path.name} has opset {opset}, our operators' bodies need {MIN_OPSET}, and onnx's converter "
        f"cannot raise it{why}; export it anew with opset {MIN_OPSET}, or use "
        "--quantizer nbit without convolutions"
    )
