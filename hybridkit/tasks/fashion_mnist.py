"""Fashion-MNIST: 70,000 grey images of clothing, 28 x 28, in 10 classes.

Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridkit.errors import FileError
from hybridkit.options import option
from hybridkit.tasks.data import Batch
from hybridkit.tasks.idx import read_idx
from hybridkit.tasks.models.cnn import ConvNet
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.splits import stratified_indices
from hybridkit.tasks.supervised import SupervisedTask

SPLIT_SEED = 60_000
VALIDATION = 1 / 12  # 5,000 of 60,000
SIDE = 28
CLASSES = 10
MEAN, DEVIATION = 0.2860, 0.3530  # of all training pixels, scaled to [0, 1]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TORCHVISION = Path("FashionMNIST/raw")  # below the root that torchvision was given


class FashionMNIST(SupervisedTask):
    """Inputs uint8 [batch, 1, 28, 28], given to the model standardised; targets int64 [batch] in 0..9.

    Validation is a fixed stratified twelfth of the official training set, test the official test set. Samples
    are clustered by their image reduced to 7 x 7.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of the fashion-mnist task."""

        data_dir: str = option("", "folder with the four IDX files, or torchvision's root folder")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        super().__init__(
            name="fashion-mnist",
            load=self._load,
            models={"cnn": fashion_cnn},
            prepare=standardise,
            features=thumbnails,
            input_names=("image",),
            source="Fashion-MNIST",
        )

    def _load(self) -> Splits:
        return load_fashion_mnist(find_folder(self.options.data_dir))


def fashion_cnn() -> nn.Module:
    """Four 3 x 3 convolutions; 0.24 M parameters."""
    return ConvNet(1, ((32, 2), (64, 2), (128, 1), (128, 2)), CLASSES)


def standardise(images: Tensor) -> Tensor:
    """Bytes to floats with mean 0 and variance 1 over the training set."""
    return (images.float() / 255 - MEAN) / DEVIATION


def thumbnails(images: Tensor) -> Tensor:
    """Means of 4 x 4 pixels: uint8 [samples, 1, 28, 28] -> float32 [samples, 49] in [0, 1]."""
    return F.avg_pool2d(images.float() / 255, 4).flatten(1)


def find_folder(data_dir: str) -> Path:
    """The folder with the IDX files: under `data_dir` if that is given, else Debian's or ./data.

    Raises FileError, saying how to get the data, where there is none.
    """
    roots = [Path(data_dir).expanduser()] if data_dir else [DEBIAN, Path("data")]
    places = [
        folder
        for root in roots
        for folder in (root, root / TORCHVISION, root / "raw", root / "fashion-mnist")
    ]
    for folder in places:
        if _file(folder, "train-images-idx3-ubyte") is not None:
            return folder
    looked = " and ".join(map(str, roots))
    raise FileError(
        f"Fashion-MNIST is not in {looked}; apt-get install dataset-fashion-mnist (Debian), or get the four "
        "*-ubyte.gz files from github.com/zalandoresearch/fashion-mnist and name their folder with --data-dir"
    )


def load_fashion_mnist(folder: Path) -> Splits:
    """The splits from the four IDX files in `folder`. Raises FileError if one is missing or damaged."""
    images, labels = _read_part(folder, "train")
    validation, train = map(torch.from_numpy, stratified_indices(labels.numpy(), (VALIDATION,), SPLIT_SEED))
    return Splits(
        train=(images[train], labels[train]),
        validation=(images[validation], labels[validation]),
        test=_read_part(folder, "t10k"),
    )


def _read_part(folder: Path, part: str) -> Batch:
    """Images uint8 [n, 1, 28, 28] and labels int64 [n] of one part."""
    arrays = []
    for name, dimensions in ((f"{part}-images-idx3-ubyte", 3), (f"{part}-labels-idx1-ubyte", 1)):
        path = _file(folder, name)
        if path is None:
            raise FileError(f"{folder} has no {name} or {name}.gz; Fashion-MNIST needs all four files")
        arrays.append(read_idx(path, dimensions))
    images, labels = arrays
    if images.shape[1:] != (SIDE, SIDE) or len(images) != len(labels) or int(labels.max()) >= CLASSES:
        raise FileError(
            f"the {part} files in {folder} are not Fashion-MNIST: images {list(images.shape)}, "
            f"{len(labels)} labels up to {int(labels.max())}"
        )
    return images.unsqueeze(1), labels.long()


def _file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
