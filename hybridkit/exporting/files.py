"""ONNX files that appear whole or not at all, also where the weights are in a second file.

Weights above EXTERNAL_BYTES go to `<name>.<digest>.data` beside the model. The digest makes the name new, so
that the model that is being replaced stays complete until the one `os.replace` that exchanges it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from hybridkit.errors import FileError, HybridkitError
from hybridkit.packing.atomic import sync, temporary_beside

EXTERNAL_BYTES: Final = 64 * 2**20
_SMALL: Final = 1024  # bytes of a tensor that stays in the model in any case


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside `path`; what is there in the end takes its place.

    Raises FileError if the folder of `path` does not exist or cannot be written.
    """
    try:
        folder = temporary_beside(path)
        folder.mkdir()
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        yield folder / path.name
        try:
            _place(folder, path)
        except OSError as error:
            raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(model: ir.Model, path: Path) -> None:
    """Write the model, its weights external if they exceed EXTERNAL_BYTES. Not atomic; see `staged`."""
    if weight_bytes(model) <= EXTERNAL_BYTES:
        _take_in(model)
        ir.save(model, path)
        return
    name = f"{path.name}.{_digest(model)}.data"
    ir.save(model, path, external_data=name, size_threshold_bytes=_SMALL)


def check_form(path: Path) -> None:
    """onnx's full check and strict shape inference. Raises HybridkitError where the file fails them."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        without_weights = onnx.load(str(path), load_external_data=False)
        onnx.shape_inference.infer_shapes(without_weights, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())
        raise HybridkitError(f"the exported model is not valid ONNX: {reason}") from error


def written_bytes(path: Path) -> int:
    """Bytes of the model file at `path` and of its data file."""
    return sum(part.stat().st_size for part in (path, *_data_files(path)))


def model_bytes(model: ir.Model) -> int:
    """Bytes that the model would take in a file."""
    without_weights = model.clone()
    for value in without_weights.graph.initializers.values():
        value.const_value = ir.tensor(np.zeros(0, np.uint8), name=value.name)
    return len(ir.to_proto(without_weights).SerializeToString()) + weight_bytes(model)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def _take_in(model: ir.Model) -> None:
    """Read the weights that lie in another model's data file."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)


def _digest(model: ir.Model) -> str:
    digest = hashlib.sha256()
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        digest.update(name.encode())
        digest.update(value.const_value.tobytes())
    return digest.hexdigest()[:12]


def _data_files(path: Path) -> list[Path]:
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{12}\.data")
    return [p for p in path.parent.iterdir() if pattern.fullmatch(p.name)]


def _place(folder: Path, path: Path) -> None:
    staged_data = _data_files(folder / path.name)
    new = [path.parent / p.name for p in staged_data]
    old = [p for p in _data_files(path) if p not in new]
    added = [p for p in new if not p.exists()]
    for file in folder.iterdir():
        sync(file)
    try:
        for file in staged_data:
            os.replace(file, path.parent / file.name)
        os.replace(folder / path.name, path)
    except OSError:
        for file in added:
            file.unlink(missing_ok=True)
        raise
    sync(path.parent)
    for file in old:
        file.unlink(missing_ok=True)
