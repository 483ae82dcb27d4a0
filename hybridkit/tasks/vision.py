"""Classes of images, for pretrained vision networks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridkit.errors import FileError, UsageError
from hybridkit.options import option
from hybridkit.pretrained import Pretrained
from hybridkit.tasks.classes import ByClass
from hybridkit.tasks.datafiles import Part, find_files
from hybridkit.tasks.labels import LABELS, Labels, with_head
from hybridkit.tasks.pretrained_task import PretrainedOptions, PretrainedTask
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.rows import (
    Rows,
    Table,
    column,
    cut_by_class,
    is_named,
    is_saved,
    open_tables,
    renamed,
    with_all_parts,
)

IMAGES: Final = ("image", "img", "pixel_values")
AT_ONCE: Final = 64  # images looked at undecoded
THUMBNAIL: Final = 8  # pixels along each side of what images are clustered by


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageOptions(PretrainedOptions):
    """Options of image classification."""

    processor: str = option("", "where the image processor is (default: with the network)")
    image_column: str = option("", "column of a table with the image (default: image, img)")
    label_column: str = option("", "column with the class (default: label, ...)")


class ImageClassification(ByClass, PretrainedTask):
    """Batches of `pixel_values`, float32 [batch, channels, height, width], and `labels`, int64 [batch].

    Images lie in one folder per class, below train, validation and test where they are shared out, or in a
    column of a table. The network's own image processor makes its inputs of them.
    """

    name = "image-classification"
    input_names = ("pixel_values",)
    dynamic_axes: Mapping[str, Mapping[int, str]] = {"pixel_values": {0: "batch"}}
    Options = ImageOptions

    def __init__(self, options: ImageOptions | None = None) -> None:
        self.options = options or ImageOptions()
        super().__init__(self.options)

    @cached_property
    def processor(self) -> Any:
        """transformers' image processor."""
        where = self.options.processor or self.options.model
        if not self.options.processor and not self.models:
            raise UsageError(f"task {self.name}: say what prepares images: --set task.processor=FOLDER")
        return self._opened(where).image_processor()

    @cached_property
    def _tables(self) -> dict[Part, Table]:
        where = self._where
        if is_named(where) or is_saved(where):
            return open_tables(where, self.options.subset)
        return open_tables(where, files=find_files(where, ("images", "tables")))

    @property
    def _where(self) -> str:
        if not self.options.data_dir:
            raise UsageError(f"task {self.name} needs data: --data-dir FOLDER or hf:OWNER/NAME")
        return self.options.data_dir

    @cached_property
    def labels(self) -> Labels:
        """The classes of the data, in the network's order where it knows them."""
        name = column(self._tables["train"], self.options.label_column, LABELS, "label_column", self._where)
        found = Labels(self._tables, name, self._where)
        return found.reordered(self._opened(self.options.model).config) if self.models else found

    @cached_property
    def _all_rows(self) -> Mapping[Part, Rows]:
        name = column(self._tables["train"], self.options.image_column, IMAGES, "image_column", self._where)
        parts: dict[Part, Rows] = {}
        for part, labels in self.labels.parts.items():
            table = _decoding(renamed(self._tables[part], {name: "image"}))
            parts[part] = Rows(table, np.arange(len(table)), labels=labels)
        return with_all_parts(parts, cut_by_class, self._where)

    def _load(self) -> Splits:
        rows = self._all_rows
        return Splits(rows["train"], rows["validation"], rows["test"])

    def _network(self, found: Pretrained) -> Any:
        if not found.has_weights:  # what belongs to a network that had its head
            return found.network("image-classification")
        return with_head(found, "image-classification", self.labels.names)

    @cached_property
    def _mode(self) -> str:
        """How many colours the network sees: RGB, or L for grey."""
        config = self._opened(self.options.model).config if self.models else None
        return "L" if getattr(config, "num_channels", 3) == 1 else "RGB"

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One batch, through the image processor."""
        images = [self._image(sample["image"]) for sample in samples]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([sample["label"] for sample in samples])}

    def _image(self, image: Any) -> Any:
        if not hasattr(image, "convert"):
            raise FileError(f"{self._where}: the image column holds {type(image).__name__}, not images")
        return image.convert(self._mode)

    def _features(self, batch: Mapping[str, Tensor]) -> Tensor:
        return F.adaptive_avg_pool2d(batch["pixel_values"], THUMBNAIL).flatten(1)

    def _digests(self) -> dict[str, str]:
        sha = hashlib.sha256()
        for rows in self._all_rows.values():
            for row in _undecoded(rows):
                sha.update(row)
            sha.update(rows.labels.tobytes() if rows.labels is not None else b"")
        settings = json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
        return {"data": sha.hexdigest(), "processor": hashlib.sha256(settings.encode()).hexdigest()}


def _decoding(table: Table) -> Table:
    """The table with its images as such, where it does not say that files' bytes are images."""
    import datasets

    kind = table.features["image"]
    encoded = isinstance(kind, dict) and "bytes" in kind
    if encoded or (isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary")):
        return table.cast_column("image", datasets.Image())
    return table


def _undecoded(rows: Rows) -> Iterator[bytes]:
    """What tells each image from others: its bytes, or of a file its name and size."""
    import datasets

    raw = rows.table.cast_column("image", datasets.Image(decode=False))
    for start in range(0, len(rows), AT_ONCE):
        for image in raw[rows.places[start : start + AT_ONCE].tolist()]["image"]:
            if image["bytes"] is not None:
                yield hashlib.sha256(image["bytes"]).digest()
            else:
                path = Path(image["path"])
                yield f"{path.parent.name}/{path.name}:{path.stat().st_size}".encode()
