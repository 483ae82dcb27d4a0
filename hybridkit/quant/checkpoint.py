"""The tensors of a safetensors checkpoint by name, read when they are asked for; no network is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hybridkit.errors import FileError

INDEX: Final = "model.safetensors.index.json"
_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Checkpoint(Mapping[str, Tensor]):
    """One .safetensors file, a sharded one's index (`*.index.json`), or the folder that holds either.

    A tensor is read at each access and not kept. Raises FileError for what is missing, damaged or no such
    file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._files: dict[str, Any] = {}  # by tensor
        for file in _shards(Path(path)):
            opened = _open(file)
            for name in opened.keys():  # noqa: SIM118 - no mapping
                if name in self._files:
                    raise FileError(f"{file}: the tensor {_shown(name)} is in two files of the checkpoint")
                self._files[name] = opened

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def meta(self, name: str) -> Tensor:
        """The type and shape of a tensor, without its content."""
        known = self._files[name].get_slice(name)
        dtype = _DTYPES.get(known.get_dtype())
        if dtype is None:
            raise FileError(
                f"the tensor {_shown(name)} has the type {known.get_dtype()}, which is not supported"
            )
        return torch.empty(known.get_shape(), dtype=dtype, device="meta")

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _shards(path: Path) -> list[Path]:
    if path.is_dir():
        if (path / INDEX).is_file():
            return _shards(path / INDEX)
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise FileError(f"{path}: holds {len(found)} .safetensors files and no {INDEX}; name one file")
        return found
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FileError(f"{path}: is not the index of a sharded checkpoint") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise FileError(f"{path}: names {_shown(name)}, which is no .safetensors file beside it")
    return [path.with_name(name) for name in sorted(names)]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise FileError(f"{path}: there is no such file") from None
    except (OSError, SafetensorError):
        raise FileError(f"{path}: is not a whole .safetensors file") from None


def _shown(name: object) -> str:
    return repr(name)[:100]
