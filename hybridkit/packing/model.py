"""The packed model: quantised layers, the tensors beside them, and the one file that holds both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from numpy.typing import NDArray

from hybridkit.errors import UsageError
from hybridkit.packing.container import TensorSpec
from hybridkit.packing.layers import LayerSpec, PackedLayer
from hybridkit.packing.reader import read_packed
from hybridkit.packing.sizes import Sizes, measure
from hybridkit.packing.writer import (
    LayerSource,
    ModelSource,
    TensorSource,
    check_names,
    file_specs,
    header_bytes,
    write_packed,
)

_T = TypeVar("_T")

SUFFIX = ".hk.safetensors"

__all__ = [
    "SUFFIX",
    "LayerSource",
    "LayerSpec",
    "ModelSource",
    "PackedLayer",
    "PackedModel",
    "Sizes",
    "TensorSource",
    "TensorSpec",
    "write_packed",
]


@dataclass(frozen=True, eq=False)
class PackedModel:
    """A packed model in memory.

    layers: the quantised layers by module name.
    tensors: everything else (biases, norms, buffers, unquantised weights) by state-dictionary name.
    tied: weights that are another weight: alias -> name of the stored one, both as `layer.weight`.
    metadata: JSON values; by convention `task`, `model`, `inputs` (a list of name, shape, dtype), `commit`.
    """

    layers: Mapping[str, PackedLayer]
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if misnamed := [name for name, layer in self.layers.items() if layer.name != name]:
            raise UsageError(f"the layer {self.layers[misnamed[0]].name!r} is listed as {misnamed[0]!r}")
        check_names([*self.layers.values()], self.tensors, self.tied)

    def source(self) -> ModelSource:
        """This model as a writer takes it."""
        layers = [LayerSource(layer.spec, partial(_itself, layer)) for layer in self.layers.values()]
        tensors = {
            name: TensorSource(TensorSpec.of(array.dtype, array.shape), partial(_itself, array))
            for name, array in self.tensors.items()
        }
        return ModelSource(layers, tensors, self.tied, self.metadata)

    def save(self, path: str | os.PathLike[str], compress: Literal["zstd"] | None = None) -> Sizes:
        """Write the file (by convention `*.hk.safetensors`) atomically and return its sizes.

        Raises UsageError for tensors or metadata the format cannot hold, FileError if writing fails.
        """
        return write_packed(path, self.source(), compress=compress)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PackedModel:
        """Read a file and check all of it. Raises FileError with the reason if anything is wrong."""
        content = read_packed(path)
        return cls(content.layers, content.tensors, content.tied, content.metadata)

    def sizes(self) -> Sizes:
        """Sizes of this model as an uncompressed file."""
        source = self.source()
        file_bytes = header_bytes(source) + sum(spec.nbytes for spec in file_specs(source).values())
        tensors = {name: tensor.spec for name, tensor in source.tensors.items()}
        return measure([layer.spec for layer in source.layers], tensors, file_bytes)


def _itself(value: _T) -> _T:
    return value
