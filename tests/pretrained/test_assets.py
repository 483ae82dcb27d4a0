"""Configuration and tokenizer travel with runs, packed models and exported files."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
import transformers
from folders import WORDS, network, write

from hybridkit.cli import run
from hybridkit.errors import FileError
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained import open_pretrained
from hybridkit.pretrained.assets import RECORD, assets_in, assets_of, beside, travelling
from hybridkit.sources.protocol import open_source
from hybridkit.training.runs import Run

KEPT = {"config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "LICENSE", RECORD}
TASK = ["--task", "pretrained_task:task"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    write("bert", tmp_path / "model")
    (tmp_path / "model/training_args.bin").write_bytes(b"a pickle")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"generation_config.json", "special_tokens_map.json"}


def test_they_lie_beside_a_packed_model_and_what_is_exported_from_it(place, capsys):
    assert run(["quantize", "model"]) == 0
    printed = capsys.readouterr().out
    assert names(place / "model.assets") == KEPT
    tokenizer = transformers.AutoTokenizer.from_pretrained("model.assets")
    assert tokenizer("w5 w7")["input_ids"] == [5, 7]
    packed = PackedModel.load("model.hk.safetensors")
    assert packed.metadata["assets"] == {
        "from": "model",
        "sha256": assets_in(place / "model.assets").about["sha256"],
    }
    size = sum(path.stat().st_size for path in (place / "model.assets").iterdir())
    whole = size + (place / "model.hk.safetensors").stat().st_size
    assert f"Assets: model.assets ({size:,} bytes); everything included {whole:,} bytes" in printed
    shutil.rmtree("model")
    assert run(["export", "m.onnx", "--from", "model.hk.safetensors", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["assets"] == {"path": "m.assets", "bytes": size}
    assert names(place / "m.assets") == KEPT
    said = {prop.key: prop.value for prop in onnx.load("m.onnx").metadata_props}
    assert json.loads(said["hybridkit.assets"]) == packed.metadata["assets"]
    assert [x["name"] for x in json.loads(said["hybridkit.inputs"])] == [
        "input_ids", "attention_mask", "token_type_ids",
    ]  # fmt: skip


LABELS = ["good", "bad", "neither"]


def test_a_classifiers_file_names_its_classes_and_runs_as_the_page_says(place):
    config = transformers.BertConfig(
        **{**network("bert").config.to_dict(), "id2label": dict(enumerate(LABELS)), "num_labels": 3}
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained("classes")
    shutil.copy("model/tokenizer.json", "classes")
    shutil.copy("model/tokenizer_config.json", "classes")
    assert run(["quantize", "classes", "-o", "c.hk.safetensors"]) == 0
    assert run(["export", "model.onnx", "--from", "c.hk.safetensors"]) == 0
    said = {prop.key: prop.value for prop in onnx.load("model.onnx").metadata_props}
    assert json.loads(said["hybridkit.labels"]) == LABELS
    page = (Path(__file__).parents[2] / "docs/onnx.md").read_text()
    [code] = re.findall(r"```python\n(import json\n.*?)```", page, re.DOTALL)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(ast.literal_eval(printed)) <= set(LABELS)


def test_a_vision_networks_file_says_how_images_are_prepared(place):
    write("vit", place / "vision")
    assert run(["export", "v.onnx", "--from", "vision"]) == 0
    said = {prop.key: prop.value for prop in onnx.load("v.onnx").metadata_props}
    wanted = json.loads((place / "vision/preprocessor_config.json").read_text())
    assert json.loads(said["hybridkit.image_processor"]) == wanted
    assert "hybridkit.labels" not in said  # LABEL_0 and so on say nothing


def test_a_run_goes_on_and_is_exported_after_its_model_is_gone(place, capsys):
    flags = [
        "--model",
        "hf:model",
        "--qat",
        "--ternary",
        "--max-steps",
        "2",
        "--batch-size",
        "4",
        "--threads",
        "1",
    ]
    assert run(["train", *TASK, *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    folder = Path(found["run"])
    assert names(folder / "assets") == KEPT
    assert json.loads((folder / "assets" / RECORD).read_text())["from"] == "hf:model"
    assert json.loads((folder / "assets/config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
    shutil.rmtree("model")
    _, model = Run(folder).load_model(trusted=["pretrained_task:task"])
    assert model.classifier.out_features == 3
    assert run(["export", "a.onnx", "--from", str(folder), *TASK]) == 0
    assert run(["export", "b.onnx", "--from", str(folder / "model.hk.safetensors"), *TASK]) == 0
    assert names(place / "a.assets") == names(place / "b.assets") == KEPT
    assert run(["train", "--resume", str(folder), *TASK, "--max-steps", "3", "--json"]) == 0
    assert Run(folder).recorded().model == "hf:model"
    packed = PackedModel.load(folder / "model.hk.safetensors")
    assert packed.metadata["model"] == "hf:model"
    assert packed.metadata["assets"]["from"] == "hf:model"


def test_a_resumed_run_is_the_same_without_its_model(place, capsys):
    flags = ["--model", "hf:model", "--batch-size", "4", "--threads", "1", "--json"]

    def weights(steps, *more):
        assert run(["train", *TASK, *flags, "--max-steps", steps]) == 0
        folder = json.loads(capsys.readouterr().out)["run"]
        for end in more:
            shutil.move("model", "elsewhere")
            assert run(["train", "--resume", folder, *TASK, "--max-steps", end, "--json"]) == 0
            capsys.readouterr()
            shutil.move("elsewhere", "model")
        return Run(Path(folder)).checkpoint().model

    whole, parts = weights("4"), weights("2", "4")
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_they_hold_no_weights_and_nobody_takes_them_for_a_network(place, capsys):
    assert run(["quantize", "model"]) == 0
    assert run(["quantize", "model.assets", "-o", "x.hk.safetensors"]) == 1
    assert "holds what belongs to a network beside its weights" in capsys.readouterr().err
    found = open_pretrained("model.assets")
    assert not found.has_weights
    assert type(found.network()) is transformers.BertModel


def test_lost_or_changed_ones_are_named(place, capsys):
    assert run(["quantize", "model"]) == 0
    shutil.move("model.assets", "kept")
    assert run(["export", "m.onnx", "--from", "model.hk.safetensors"]) == 1
    error = capsys.readouterr().err
    assert "model.assets, which holds configuration and tokenizer, cannot be read" in error
    assert error.count("\n") == 1
    assert run(["export", "m.onnx", "--from", "model.hk.safetensors", "--model", "model"]) == 0
    shutil.move("kept", "model.assets")
    (place / "model.assets/config.json").write_text("{}")
    assert run(["export", "m.onnx", "--from", "model.hk.safetensors"]) == 1
    assert "has changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "record",
    ["", "{", "[]", "{}", '{"format": "x", "files": {}}', '{"format": "hybridkit-assets", "files": 3}',
     '{"format": "hybridkit-assets", "files": {"../../secret": "0"}}',
     '{"format": "hybridkit-assets", "files": {"/etc/passwd": "0"}}'],
)  # fmt: skip
def test_a_damaged_record(place, record):
    assets_of(open_pretrained("model"), network("bert")).save(place / "m.assets")
    (place / "m.assets" / RECORD).write_text(record)
    with pytest.raises(FileError, match=r"damaged|changed"):
        assets_in(place / "m.assets")


def test_nothing_appears_where_the_product_fails(place):
    assets = assets_of(open_pretrained("model"), network("bert"))
    before = set(place.iterdir())
    with pytest.raises(ZeroDivisionError), travelling(assets, place / "m.onnx"):
        raise ZeroDivisionError
    assert set(place.iterdir()) == before
    with travelling(assets, place / "m.onnx") as said:
        assert said["assets"]["from"] == "model"
    assert names(place / "m.assets") == KEPT
    with travelling(assets, place / "m.onnx"):
        pass
    assert names(place / "m.assets") == KEPT
    with travelling(None, place / "m.onnx") as said:
        assert said == {}
    assert set(place.iterdir()) == before, "those of the product before are gone"


def test_those_of_a_file_of_the_same_name_stay(place):
    assets = assets_of(open_pretrained("model"), network("bert"))
    packed = place / "m.hk.safetensors"
    with travelling(assets, packed):
        packed.touch()
    with travelling(None, place / "m.onnx"):
        (place / "m.onnx").touch()
    assert names(place / "m.assets") == KEPT


def test_where_they_are(place):
    for product in ("a.hk.safetensors", "a.hk.safetensors.index.json", "a.onnx"):
        assert beside(place / product) == place / "a.assets"


def test_an_unknown_name_of_a_network_in_a_packed_file_imports_nothing(place, capsys):
    packed = PackedModel.load(_quantised())
    PackedModel(packed.layers, packed.tensors, packed.tied, {"model": "hf:os"}).save("evil.hk.safetensors")
    with pytest.raises(Exception, match="say --model hf:os"):
        _ = open_source("evil.hk.safetensors").network


def _quantised() -> str:
    assert run(["quantize", "model"]) == 0
    return "model.hk.safetensors"


def test_words(place):
    assert len(transformers.AutoTokenizer.from_pretrained("model")) == WORDS
