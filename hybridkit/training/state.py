"""Nested state <-> tensors and JSON, exactly.

A state dict holds tensors, numpy arrays, numbers, strings, lists, tuples and dicts of them. `flatten` moves
the tensors into one flat mapping (for safetensors) and leaves a JSON value in which they are referred to by
name; `unflatten` is its exact inverse. Nothing is pickled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hybridkit.errors import FileError

TAG = "$"  # marks a JSON object that stands for something JSON has no notation for


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """The tensors of `state` by name, and the rest as a JSON value.

    Tensors come detached, on the CPU and contiguous; two entries that are one tensor stay one. Raises
    TypeError for a value of a kind that cannot be restored exactly.
    """
    flattener = _Flattener()
    return flattener.tensors, flattener.encode(state, "")


def alone(tensor: Tensor, storages: set[int]) -> Tensor:
    """`tensor` detached, contiguous, on the CPU, and a copy where it shares memory with another one.

    safetensors refuses those. storages: the memory of those that were here before; this one's joins them.
    """
    found = tensor.detach().cpu().contiguous()
    storage = found.untyped_storage()
    if storage.nbytes() != found.nbytes or storage.data_ptr() in storages:
        return found.clone()
    storages.add(storage.data_ptr())
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, from where tensors are in memory, on the disk when this returns. Raises OSError."""
    storages: set[int] = set()
    try:
        save_file({name: alone(tensor, storages) for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def unflatten(tensors: Mapping[str, Tensor], value: Any) -> Any:
    """The state that `flatten` took apart. Raises FileError where the value is not one of its results."""
    try:
        return _decode(tensors, value)
    except (KeyError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise FileError(f"the saved state is inconsistent ({type(error).__name__}: {error})") from None


class _Flattener:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._seen: dict[tuple[Any, ...], str] = {}

    def encode(self, value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return {TAG: "tensor", "name": self._store(value, path)}
        if isinstance(value, np.ndarray | np.generic):
            array = np.ascontiguousarray(value).reshape(value.shape)  # ascontiguousarray makes 0-d 1-d
            kind = "ndarray" if isinstance(value, np.ndarray) else "scalar"
            return {TAG: kind, "name": self._add(torch.from_numpy(array.copy()), path)}
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}
        if isinstance(value, list):
            return [self.encode(item, f"{path}.{i}") for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return {TAG: "tuple", "items": self.encode(list(value), path)}
        if isinstance(value, Mapping):
            return self._encode_mapping(value, path)
        raise TypeError(f"state{path} is a {type(value).__name__}, which cannot be saved without pickling")

    def _encode_mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        encoded = [(key, self.encode(item, f"{path}.{key}")) for key, item in value.items()]
        if all(isinstance(key, str) for key in value) and TAG not in value:
            return dict(encoded)
        return {TAG: "dict", "items": [[self.encode(key, path), item] for key, item in encoded]}

    def _store(self, tensor: Tensor, path: str) -> str:
        tensor = tensor.detach()
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), str(tensor.device))
        if tensor.numel() and place in self._seen:
            return self._seen[place]
        self._seen[place] = self._add(tensor.cpu().contiguous(), path)
        return self._seen[place]

    def _add(self, tensor: Tensor, path: str) -> str:
        name = base = path.lstrip(".") or "value"
        suffix = 1
        while name in self.tensors:
            suffix += 1
            name = f"{base}#{suffix}"
        self.tensors[name] = tensor
        return name


def _decode(tensors: Mapping[str, Tensor], value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(tensors, item) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: _decode(tensors, item) for key, item in value.items()}
    kind = value[TAG]
    if kind == "tensor":
        return tensors[value["name"]]
    if kind == "ndarray":
        return tensors[value["name"]].numpy().copy()
    if kind == "scalar":
        return tensors[value["name"]].numpy()[()]
    if kind == "float":
        return float(value["value"])
    if kind == "tuple":
        return tuple(_decode(tensors, item) for item in value["items"])
    if kind == "dict":
        return {_decode(tensors, key): _decode(tensors, item) for key, item in value["items"]}
    raise ValueError(f"unknown kind {kind!r}")
