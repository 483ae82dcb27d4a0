"""Checkpoints in one file and in several, read a tensor at a time; an index from anywhere is not trusted."""

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hybridkit.errors import FileError
from hybridkit.packing.shards import beside
from hybridkit.quant.checkpoint import open_tensors

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor([1, 2], dtype=torch.bfloat16),
    "c": torch.tensor(7),
    "d": torch.zeros(0, 3, dtype=torch.float16),
}


def write(folder, weight_map=None):
    """Two files and their index."""
    save_file({n: TENSORS[n] for n in "ab"}, folder / "model-1.safetensors")
    save_file({n: TENSORS[n] for n in "cd"}, folder / "model-2.safetensors")
    weights = {n: f"model-{1 if n in 'ab' else 2}.safetensors" for n in "abcd"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 3}, "weight_map": weight_map or weights}))
    return index


def assert_all(found):
    assert set(found) == set(TENSORS)
    assert "e" not in found
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_one_file_and_several_give_the_same(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert_all(open_tensors(tmp_path / "model.safetensors"))
    assert_all(open_tensors(write(tmp_path)))


def test_the_links_of_a_hub_cache_are_followed_and_no_others(tmp_path):
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    index = write(snapshot)
    os.replace(snapshot / "model-1.safetensors", blobs / "1234")
    (snapshot / "model-1.safetensors").symlink_to("../../blobs/1234")
    assert_all(open_tensors(index))
    os.replace(snapshot / "model-2.safetensors", tmp_path / "elsewhere")
    (snapshot / "model-2.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="a link that leads out of its folder"):
        open_tensors(index)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "./model-1.safetensors", "\x1b[2J/"]
)
def test_a_file_outside_the_folder_is_refused(tmp_path, name):
    with pytest.raises(FileError, match="which is not one of its folder") as caught:
        open_tensors(write(tmp_path, {"a": name}))
    assert str(caught.value).isprintable()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_whatever_an_index_names_lies_in_its_folder(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp()
    try:
        found = beside(folder / "index.json", name)
    except FileError as error:
        assert str(error).isprintable()  # noqa: PT017 - there may be no error
    else:
        assert found.parent == folder.resolve()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no table weight_map"),
        ('{"weight_map":[]}', "no table weight_map"),
        ('{"weight_map":{"a":3}}', "no table weight_map"),
        ('{"weight_map":{"a":"x","a":"y"}}', "not valid JSON"),
        ('{"weight_map":{"a":"gone.safetensors"}}', "no such file"),
        ('{"weight_map":{"a":"model-2.safetensors"}}', "holds no tensor 'a'"),
        ('{"weight_map":{"a":"model.safetensors.index.json"}}', "not a safetensors file"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_an_index_that_is_none(tmp_path, text, message):
    index = write(tmp_path)
    index.write_text(text)
    with pytest.raises(FileError, match=message) as caught:
        open_tensors(index)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        open_tensors(tmp_path / "model.safetensors")
    with pytest.raises(FileError, match="cannot read"):
        open_tensors(tmp_path / "model.safetensors.index.json")
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04")
    with pytest.raises(FileError, match="not a safetensors file"):
        open_tensors(tmp_path / "model.safetensors")
