from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from hybridkit.errors import FileError
from hybridkit.tasks import fashion_mnist
from hybridkit.tasks.resolve import make_model, make_task

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def write_idx(path, array, *, zipped=True):
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def write_data(folder, *, zipped=True, side=28):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, samples in (("train", 240), ("t10k", 60)):
        labels = (np.arange(samples) % 10).astype(np.uint8)
        images = random.integers(0, 256, (samples, side, side), np.uint8)
        images[:, 0, 0] = labels  # tells whether images and labels stay together
        write_idx(folder / f"{part}-images-idx3-ubyte", images, zipped=zipped)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels, zipped=zipped)


@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw", "raw", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [True, False])
def test_data_are_found_in_every_layout(tmp_path, layout, zipped):
    write_data(tmp_path / layout, zipped=zipped)
    task = make_task("fashion-mnist", {"data_dir": str(tmp_path)})
    splits = task.splits()
    assert [len(p[0]) for p in (splits.train, splits.validation, splits.test)] == [220, 20, 60]
    for images, labels in (splits.train, splits.validation, splits.test):
        assert images.shape[1:] == (1, 28, 28)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert torch.equal(images[:, 0, 0, 0].long(), labels)
    assert torch.bincount(splits.validation[1]).tolist() == [2] * 10


def test_inputs_and_features(tmp_path):
    write_data(tmp_path)
    task = make_task("fashion-mnist", {"data_dir": str(tmp_path)})
    batch = task.splits().validation
    (images,) = task.inputs(batch)
    assert images.dtype == torch.float32
    restored = (images * fashion_mnist.DEVIATION + fashion_mnist.MEAN) * 255
    torch.testing.assert_close(restored, batch[0].float(), atol=1e-3, rtol=0)
    features = task.cluster_features(batch)
    assert features.shape == (20, 49)
    corner = batch[0][:, 0, :4, :4].float().mean((1, 2)) / 255
    np.testing.assert_allclose(features[:, 0], corner, rtol=1e-5)
    model = make_model(task).eval()
    assert model(images).shape == (20, 10)


def test_nowhere_says_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(FileError, match="apt-get install dataset-fashion-mnist") as error:
        make_task("fashion-mnist", {"data_dir": str(tmp_path)}).splits()
    assert "\n" not in str(error.value)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "absent")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match="--data-dir"):
        make_task("fashion-mnist").splits()
    write_data(tmp_path / "data" / "FashionMNIST" / "raw")
    assert len(make_task("fashion-mnist").splits().test[0]) == 60


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(tmp_path, name):
    write_data(tmp_path)
    (tmp_path / f"{name}.gz").unlink()
    with pytest.raises(FileError, match=name if name != NAMES[0] else "Fashion-MNIST is not in"):
        make_task("fashion-mnist", {"data_dir": str(tmp_path)}).splits()


def test_another_data_set_is_refused(tmp_path):
    write_data(tmp_path, side=32)
    with pytest.raises(FileError, match=r"not Fashion-MNIST: images \[240, 32, 32\]"):
        make_task("fashion-mnist", {"data_dir": str(tmp_path)}).splits()
    write_data(tmp_path)
    write_idx(tmp_path / NAMES[1], np.full(240, 11, np.uint8))
    with pytest.raises(FileError, match="labels up to 11"):
        make_task("fashion-mnist", {"data_dir": str(tmp_path)}).splits()
    write_idx(tmp_path / NAMES[1], np.zeros(239, np.uint8))
    with pytest.raises(FileError, match="239 labels"):
        make_task("fashion-mnist", {"data_dir": str(tmp_path)}).splits()


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="the Debian package is not installed")
def test_the_real_data():
    task = make_task("fashion-mnist")
    provenance = task.provenance()
    assert provenance["samples"] == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert provenance["sha256"].startswith("94782589327da026")
    (images,) = task.inputs(task.splits().train)
    assert abs(float(images.mean())) < 1e-2
    assert abs(float(images.std()) - 1) < 1e-2
