"""The packed model: quantised layers, the tensors beside them, and the one file that holds both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from numpy.typing import NDArray

from hybridkit.errors import UsageError
from hybridkit.packing.container import TensorSpec
from hybridkit.packing.layers import LayerSpec, PackedLayer
from hybridkit.packing.reader import open_packed
from hybridkit.packing.sizes import Sizes, measure
from hybridkit.packing.table import SUFFIX, Table, check_names
from hybridkit.packing.writer import (
    SHARD_BYTES,
    LayerSource,
    ModelSource,
    TensorSource,
    data_bytes,
    header_bytes,
    write_packed,
)

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
    """A packed model in memory or in a file.

    layers: the quantised layers by module name.
    tensors: everything else (biases, norms, buffers, unquantised weights) by state-dictionary name.
    tied: weights that are another weight: alias -> name of the stored one, both as `layer.weight`.
    metadata: JSON values; by convention `task`, `model`, `inputs` (a list of name, shape, dtype), `commit`.
    """

    layers: Mapping[str, PackedLayer]
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _table: Table | None = None

    def __post_init__(self) -> None:
        if self._table is not None:  # a file's, checked as it was opened
            return
        if misnamed := [name for name, layer in self.layers.items() if layer.name != name]:
            raise UsageError(f"the layer {self.layers[misnamed[0]].name!r} is listed as {misnamed[0]!r}")
        check_names([*self.layers.values()], self.tensors, self.tied)

    def table(self) -> Table:
        """What the model holds, but for the content."""
        if self._table is not None:
            return self._table
        tensors = {name: TensorSpec.of(array.dtype, array.shape) for name, array in self.tensors.items()}
        return Table([layer.spec for layer in self.layers.values()], tensors, self.tied, self.metadata)

    def source(self) -> ModelSource:
        """This model as a writer takes it."""
        table = self.table()
        layers = [LayerSource(spec, partial(self.layers.__getitem__, spec.name)) for spec in table.layers]
        tensors = {
            name: TensorSource(spec, partial(self.tensors.__getitem__, name))
            for name, spec in table.tensors.items()
        }
        return ModelSource(layers, tensors, self.tied, self.metadata)

    def save(
        self,
        path: str | os.PathLike[str],
        compress: Literal["zstd"] | None = None,
        *,
        shard_bytes: int = SHARD_BYTES,
    ) -> Sizes:
        """Write the file (by convention `*.hk.safetensors`) atomically and return its sizes.

        More than `shard_bytes` go into several files and an index. Raises UsageError for tensors or metadata
        the format cannot hold, FileError if writing fails.
        """
        return write_packed(path, self.source(), compress=compress, shard_bytes=shard_bytes)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PackedModel:
        """Map a file and check its header. A layer or tensor is read and hashed when it is first asked for.

        Raises FileError with the reason if anything is wrong, here or then. Arrays may be read-only views of
        the file: replace one that is in use, never write into it.
        """
        content = open_packed(path)
        table = content.table
        return cls(content.layers, content.tensors, table.tied, table.metadata, table)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PackedModel:
        """Map a file and check all of it. Raises FileError with the reason if anything is wrong."""
        model = cls.open(path)
        model.verify()
        return model

    def verify(self) -> None:
        """Read all layers and tensors. Raises FileError for the first that is not what was written."""
        for pieces in (self.layers, self.tensors):
            for name in pieces:
                pieces[name]

    def sizes(self) -> Sizes:
        """Sizes of this model as one uncompressed file."""
        table = self.table()
        return measure(table.layers, table.tensors, header_bytes(table) + data_bytes(table))
