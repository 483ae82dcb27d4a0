"""Folders that are not what they should be: one line each, nothing written, no traceback."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from folders import network, write, write_gguf
from safetensors.torch import load_file, save_file

from hybridkit.cli import run
from hybridkit.errors import FileError, HybridkitError
from hybridkit.packing.atomic import remove
from hybridkit.pretrained import open_pretrained
from hybridkit.sources.protocol import open_source


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    write("bert", folder / "one")
    write("bert", folder / "shards", max_shard_size="40KB")
    write_gguf(folder / "m.gguf")
    return folder


def _edit(name: str, **changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return edit


def _put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _cut(name: str, by: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        (path,) = folder.glob(name)
        path.write_bytes(path.read_bytes()[:-by])

    return cut


def _drop(*names: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return drop


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return edit


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(network("bert").state_dict(), folder / "pytorch_model.bin")


def _index(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        content = json.loads(path.read_text())
        content["weight_map"] |= changes
        path.write_text(json.dumps(content))

    return edit


SHARD = "model-00002-of-*.safetensors"
LAST = "encoder.layer.0.output.dense.weight"
BAD = {
    "no config": ("one", _drop("config.json"), "there is no run here"),
    "config is no JSON": ("one", _put("config.json", b"{"), "config.json is not JSON"),
    "config is bytes": ("one", _put("config.json", bytes(range(256))), "config.json is not JSON"),
    "config is a list": ("one", _put("config.json", b"[1]"), "config.json is no table"),
    "deep config": ("one", _put("config.json", b"[" * 100_000), "config.json is not JSON"),
    "unknown family": ("one", _edit("config.json", model_type="bertie"), "knows no model_type 'bertie'"),
    "family is a number": ("one", _edit("config.json", model_type=7), "knows no model_type 7"),
    "no family": ("one", _edit("config.json", model_type=None), "names no model_type"),
    "sizes that do not fit": ("one", _edit("config.json", hidden_size=65), "its network cannot be read"),
    "another size": ("one", _edit("config.json", intermediate_size=32), "have another shape of"),
    "another depth": ("one", _edit("config.json", num_hidden_layers=2), "its weights lack encoder.layer.1"),
    "a million layers": ("one", _edit("config.json", num_hidden_layers=10**6), "num_hidden_layers is"),
    "thousands of layers": ("one", _edit("config.json", num_hidden_layers=9999), "num_hidden_layers is"),
    "a vocabulary of billions": ("one", _edit("config.json", vocab_size=9 * 10**9), "another shape of"),
    "no weights": ("one", _drop("model.safetensors"), "there are no weights here"),
    "a pickle": ("one", _pickled, "its weights are in pytorch_model.bin alone"),
    "a pickle by name": (
        "one",
        lambda folder: (
            _pickled(folder),
            _edit("config.json", transformers_weights="pytorch_model.bin")(folder),
        ),
        "its weights are in pytorch_model.bin alone",
    ),
    "empty weights": ("one", _put("model.safetensors", b""), "not a safetensors file, or truncated"),
    "truncated weights": ("one", _cut("model.safetensors", 9), "not a safetensors file, or truncated"),
    "a tensor less": ("one", _weights(lambda s: s.pop(LAST)), f"its weights lack {LAST}"),
    "NaN": ("one", _weights(lambda s: s[LAST].fill_(torch.nan)), "not finite"),
    "missing shard": ("shards", lambda f: next(f.glob(SHARD)).unlink(), "there is no such file"),
    "truncated shard": ("shards", _cut(SHARD, 9), "not a safetensors file, or truncated"),
    "index is no JSON": ("shards", _put("model.safetensors.index.json", b"{"), "not a usable index"),
    "index names another file": ("shards", _index(**{LAST: "x.safetensors"}), "there is no such file"),
    "index leaves the folder": ("shards", _index(**{LAST: "../one/model.safetensors"}), "not a usable index"),
    "index names what is not there": ("shards", _index(absent="model-00001-of-00005.safetensors"), "index"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_line_each(name, shelf, tmp_path, monkeypatch, capsys):
    kind, spoil, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shelf / kind, "m")
    spoil(tmp_path / "m")
    before = set(tmp_path.iterdir())
    for arguments in (["quantize", "m"], ["export", "m.onnx", "--from", "m"]):
        if name == "NaN" and arguments[0] == "export":
            continue  # it would be a file that computes NaN, as its network does
        assert run(arguments) in (1, 2)
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert not printed.out
        assert set(tmp_path.iterdir()) == before


def test_no_tokenizer_and_no_image_processor(shelf):
    found = open_pretrained(str(shelf / "one"))
    assert found.tokenizer().vocab_size == 96
    with pytest.raises(FileError, match="no image processor here"):
        found.image_processor()


def test_no_tokenizer(tmp_path):
    write("bert", tmp_path / "m", tokenizer=False)
    with pytest.raises(FileError, match="there is no tokenizer here"):
        open_pretrained(str(tmp_path / "m")).tokenizer()


def test_a_head_that_a_family_does_not_have(tmp_path):
    write("vit", tmp_path / "m")
    with pytest.raises(HybridkitError, match="has no causal-lm head for vit"):
        open_pretrained(str(tmp_path / "m")).network("causal-lm")


@pytest.mark.parametrize("keep", [0, 10, 100, 0.5, -8])
def test_a_truncated_gguf_file(shelf, tmp_path, capsys, keep):
    content = (shelf / "m.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert run(["quantize", str(path), "-o", str(tmp_path / "m.hk.safetensors")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert set(tmp_path.iterdir()) == {path}


def test_a_gguf_file_of_an_unknown_family(tmp_path, capsys):
    write_gguf(tmp_path / "m.gguf", "unheard")
    capsys.readouterr()
    assert run(["quantize", str(tmp_path / "m.gguf")]) == 1
    error = capsys.readouterr().err
    assert "unheard" in error
    assert error.count("\n") == 1


def test_folders_with_more_than_one_network(shelf, tmp_path):
    shutil.copytree(shelf / "one", tmp_path / "both")
    shutil.copy(shelf / "m.gguf", tmp_path / "both/m.gguf")
    assert open_pretrained(str(tmp_path / "both")).gguf is None, "safetensors go before GGUF"
    (tmp_path / "both/model.safetensors").unlink()
    assert open_pretrained(str(tmp_path / "both")).gguf == "m.gguf"
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(shelf / "m.gguf", tmp_path / "two" / name)
    with pytest.raises(FileError, match=r"several GGUF files; name one of a\.gguf, b\.gguf"):
        open_pretrained(str(tmp_path / "two"))


@pytest.mark.parametrize(
    "text", ["hf:", "hf: ", "hf:\0", "hf:a/b/c", "hf:../x", "x.gguf", "hf:x.gguf", "hf:" + "x" * 5000]
)
def test_names_of_nothing(text):
    with pytest.raises(HybridkitError) as caught:
        open_pretrained(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes_and_cut_files(seed, shelf, tmp_path, monkeypatch):
    """Whatever is damaged, every part is there or says in a line why not."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(seed)
    for round_ in range(25):
        kind = draw.choice(("one", "shards", "m.gguf"))
        folder = tmp_path / f"m{round_}"
        text = str(folder)
        if kind == "m.gguf":
            folder.mkdir()
            shutil.copy(shelf / kind, folder)
        else:
            shutil.copytree(shelf / kind, folder)
        path = draw.choice(sorted(folder.iterdir()))
        content = bytearray(path.read_bytes())
        if draw.random() < 0.3:
            del content[draw.randrange(len(content)) :]
        else:  # most of what matters is at the beginning
            for _ in range(draw.choice((1, 3, 30))):
                content[min(int(draw.expovariate(1 / 400)), len(content) - 1)] = draw.randrange(256)
        path.write_bytes(content)
        source = open_source(text if kind != "m.gguf" else f"{text}/m.gguf")
        found = {}
        for part in ("streamed", "examples", "assets", "network"):
            try:
                found[part] = source.streamed() if part == "streamed" else getattr(source, part)
            except HybridkitError as error:
                assert "\n" not in str(error), (kind, path.name, part)  # noqa: PT017
        try:
            open_pretrained(text).tokenizer()
        except HybridkitError as error:
            assert "\n" not in str(error)  # noqa: PT017
        remove(folder)
