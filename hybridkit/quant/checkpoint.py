"""The tensors of a safetensors checkpoint, in one file or in several, each read when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from hybridkit.errors import FileError
from hybridkit.packing.shards import INDEX_SUFFIX, beside, read_index

if TYPE_CHECKING:
    from torch import Tensor


class TensorFiles(Mapping[str, "Tensor"]):
    """Tensors by name, on the CPU and mapped from their file: bytes are read when they are looked at.

    Raises FileError where a file has changed since `open_tensors` looked.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> Tensor:
        with _opened(self._files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def open_tensors(path: str | os.PathLike[str]) -> TensorFiles:
    """The tensors of a `.safetensors` file, or of the files that a `.safetensors.index.json` names.

    Raises FileError where one is missing, is no safetensors file, or lies outside the index's folder.
    """
    path = Path(path)
    if not path.name.endswith(INDEX_SUFFIX):
        return TensorFiles(dict.fromkeys(_names(path), path))
    try:
        weights = read_index(path)["weight_map"]
        files = {name: beside(path, name) for name in dict.fromkeys(weights.values())}
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except FileError as error:
        raise FileError(f"{path} is not a usable index: {error}") from None
    held = {name: set(_names(file)) for name, file in files.items()}
    for name, file in weights.items():
        if name not in held[file]:
            raise FileError(f"{path} is not a usable index: {file!r} holds no tensor {name!r:.80}")
    return TensorFiles({name: files[file] for name, file in weights.items()})


def _names(path: Path) -> list[str]:
    with _opened(path) as file:
        names: list[str] = file.keys()
        return names


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise FileError(f"{path}: there is no such file") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileError(f"{path}: not a safetensors file, or truncated ({reason})") from None
