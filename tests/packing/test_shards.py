"""Packed models in several files: what is put apart comes together, and nothing else does."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import FileError
from hybridkit.packing.model import PackedModel

NAME = "model.hk.safetensors"
INDEX = NAME + ".index.json"


@pytest.mark.parametrize("compress", [None, "zstd"])
@settings(max_examples=20, deadline=None)
@given(limit=st.integers(1, 400))
def test_any_limit_gives_the_same_model(example_model, same, tmp_path_factory, compress, limit):
    folder = tmp_path_factory.mktemp("shards")
    sizes = example_model.save(folder / NAME, compress, shard_bytes=limit)
    assert sizes.file_bytes == sum(path.stat().st_size for path in folder.iterdir())
    same(PackedModel.load(folder / NAME), example_model)
    if (folder / INDEX).exists():
        same(PackedModel.load(folder / INDEX), example_model)
        weights = json.loads((folder / INDEX).read_text())["weight_map"]
        assert set(weights.values()) | {INDEX} == {path.name for path in folder.iterdir()}
        assert set(weights) == set(example_model.table().placed())
    else:
        assert [path.name for path in folder.iterdir()] == [NAME]


def test_files_hold_no_more_than_the_limit(make_layer, tmp_path):
    layers = [make_layer(f"l{i}", (64, 512), "nbit8", seed=i) for i in range(5)]
    model = PackedModel({layer.name: layer for layer in layers})
    model.save(tmp_path / NAME, shard_bytes=70_000)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"model-0000{i}-of-00003.hk.safetensors" for i in (1, 2, 3)] + [INDEX]
    assert all(path.stat().st_size < 72_000 for path in tmp_path.iterdir())


def test_the_newer_of_one_file_and_several_counts(example_model, same, tmp_path):
    other = PackedModel({}, {"a": np.ones(3, np.float32)})
    other.save(tmp_path / NAME)
    example_model.save(tmp_path / NAME, shard_bytes=100)
    same(PackedModel.load(tmp_path / NAME), example_model)
    other.save(tmp_path / NAME)
    same(PackedModel.load(tmp_path / NAME), other)


@pytest.fixture
def folder(example_model, tmp_path):
    example_model.save(tmp_path / NAME, shard_bytes=100)
    return tmp_path


def test_files_of_two_models_do_not_mix(example_model, folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    changed = {**example_model.tensors, "fc.bias": np.zeros(3, np.float32)}
    PackedModel(example_model.layers, changed, example_model.tied, example_model.metadata).save(
        other / NAME, shard_bytes=100
    )
    for path in sorted(other.glob("model-*")):
        if path.read_bytes() != (folder / path.name).read_bytes():
            shutil.copy(path, folder / path.name)
            with pytest.raises(FileError, match="does not fit its files"):
                PackedModel.load(folder / NAME)
            return
    pytest.fail("the two models are the same")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_index_gives_one_line_or_the_same_model(example_model, same, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    example_model.save(folder / NAME, shard_bytes=100)
    content = bytearray((folder / INDEX).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / INDEX).write_bytes(content)
    try:
        model = PackedModel.load(folder / NAME)
    except FileError as error:
        assert "\n" not in str(error)  # noqa: PT017 - white space carries nothing
    else:
        same(model, example_model)


def test_a_file_that_is_missing_or_damaged(folder):
    first = next(folder.glob("model-00001*"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    with pytest.raises(FileError, match=r"model-00001.*does not match its SHA-256"):
        PackedModel.load(folder / NAME)
    first.unlink()
    with pytest.raises(FileError, match="No such file"):
        PackedModel.load(folder / NAME)
