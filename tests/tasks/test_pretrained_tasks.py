"""The whole way for each task of pretrained networks: train ternary, resume, export, the same answers."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from hybridkit.builtins import hybridkit_strategies
from hybridkit.cli import run as hybridkit
from hybridkit.packing.model import PackedModel
from hybridkit.runtime.modules import load_packed
from hybridkit.tasks.data import first
from hybridkit.tasks.protocol import named_inputs
from hybridkit.testing import TaskContract
from hybridkit.training.config import resolve
from hybridkit.training.network import configured_task, takes_pretrained

WORDS = ["import", "def", "return", "class", "data", "batch", "tensor", "with", "None", "self", "from"]
FLAGS = ("--ternary", "--qat", "--batch-size", "4", "--threads", "1")


def sentences(samples: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for i in range(samples)]


def corpus(folder: Path) -> list[str]:
    for i in range(4):
        (folder / f"{i}.py").write_text("\n".join(sentences(60, seed=i)))
    return ["--data-dir", str(folder), "--set", "task.sequence_length=16", "--set", "task.eval_samples=8"]


def labelled(folder: Path) -> list[str]:
    rows = [{"text": text, "label": f"class {len(text) % 3}"} for text in sentences(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--data-dir", str(folder)]


def scored(folder: Path) -> list[str]:
    halves = zip(sentences(60), sentences(60, seed=1), strict=True)
    lines = [f"{a},{b},{len(a) % 5}" for a, b in halves]
    (folder / "rows.csv").write_text("\n".join(["sentence1,sentence2,score", *lines]))
    return ["--data-dir", str(folder)]


def unlabelled(folder: Path) -> list[str]:
    (folder / "lines.txt").write_text("\n".join(sentences(60)))
    return ["--data-dir", str(folder)]


def images(folder: Path) -> list[str]:
    digits = load_digits()
    for number, name in enumerate(("zero", "one", "two")):
        (folder / name).mkdir()
        for i, pixels in enumerate(digits.images[digits.target == number][:12]):
            Image.fromarray((pixels * 15).astype(np.uint8)).save(folder / name / f"{i}.png")
    return ["--data-dir", str(folder)]


# task -> family of the network, data, outputs of the exported file
WAYS = {
    "causal-lm": ("llama", corpus, "logits"),
    "masked-lm": ("bert", corpus, "logits"),
    "text-classification": ("bert", labelled, "logits"),
    "text-embedding": ("bert", scored, "embedding"),
    "image-classification": ("vit", images, "logits"),
}


def test_no_task_is_forgotten():
    tasks = [s.name for s in hybridkit_strategies() if s.kind == "task"]
    assert {name for name in tasks if takes_pretrained(name)} == set(WAYS)


@pytest.fixture(params=[*WAYS, "gpt2"])
def way(request, tiny, tmp_path):
    """Task, its flags, and the name of its output."""
    task = "causal-lm" if request.param == "gpt2" else request.param
    family, data, output = WAYS[task]
    family = "gpt2" if request.param == "gpt2" else family
    (tmp_path / "data").mkdir()
    return task, ["--task", task, "--model", tiny(family), *data(tmp_path / "data")], output


ALONE = {"text-classification", "text-embedding"}  # exported once more with nothing else there


def test_from_a_folder_to_an_exported_file(way, tmp_path, capsys):
    task, flags, output = way
    model = shutil.copytree(flags[3], tmp_path / "model")
    flags = [*flags[:3], str(model), *flags[4:]]
    runs = ["--run-dir", str(tmp_path / "runs"), "--json"]
    assert hybridkit(["train", *flags, *FLAGS, *runs, "--max-steps", "10", "--eval-every", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packed"]["test"]["loss"] == pytest.approx(found["test"]["loss"], abs=1e-4)
    made = configured_task(resolve(**recorded(found["run"])))
    batch = first(made.splits().test, 3, made.collate)
    fresh = next(iter(made.models.values()))()
    network = load_packed(fresh, PackedModel.load(f"{found['run']}/model.hk.safetensors"))
    inputs = named_inputs(made, batch)

    file = tmp_path / "m.onnx"
    assert hybridkit(["export", str(file), "--from", found["run"]]) == 0
    session = onnxruntime.InferenceSession(file)
    assert [x.name for x in session.get_outputs()] == [output]
    assert {x.name for x in session.get_inputs()} == set(inputs)
    with torch.no_grad():
        expected = network(**inputs)[output]
    (got,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)

    if task in ALONE:  # the packed file needs neither data nor the model's folder
        shutil.rmtree(tmp_path / "data")
        shutil.rmtree(model)
        assert hybridkit(["export", str(file), "--from", f"{found['run']}/model.hk.safetensors"]) == 0
        assert [x.name for x in onnxruntime.InferenceSession(file).get_outputs()] == [output]


def recorded(run: str) -> dict:
    config = json.loads(Path(run, "config.json").read_text())["config"]
    kept = ("task", "model", "data_dir", "options", "max_steps")
    return {name: config[name] for name in kept}


def test_a_resumed_run_repeats_to_the_bit(way, tmp_path, capsys):
    _, flags, _ = way

    def weights(folder: str, *more: list[str]):
        runs = ["--run-dir", str(tmp_path / folder), "--json"]
        stop = "12" if not more else "7"
        assert hybridkit(["train", *flags, *FLAGS, *runs, "--max-steps", stop]) == 0
        run = json.loads(capsys.readouterr().out)["run"]
        for again in more:
            assert hybridkit(["train", "--resume", run, *again, "--json"]) == 0
            capsys.readouterr()
        lines = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
        losses = [line["loss"] for line in lines if line["event"] == "step"]
        return losses, Path(run, "model.hk.safetensors")

    (whole, file), (parts, other) = weights("a"), weights("b", ["--max-steps", "12"])
    assert parts == whole
    ours, theirs = PackedModel.load(file), PackedModel.load(other)
    for name, layer in ours.layers.items():
        np.testing.assert_array_equal(layer.dequantize(), theirs.layers[name].dequantize())


def test_samples_are_clustered(tiny, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for task in ("text-classification", "causal-lm"):
        family, data, _ = WAYS[task]
        flags = ["--task", task, "--model", tiny(family), *data(tmp_path / "data"), "--max-steps", "2"]
        hybrid = ["--hybrid", "--data-clusters", "3", "--run-dir", str(tmp_path / "runs"), "--json"]
        assert hybridkit(["train", *flags, *FLAGS, *hybrid]) == 0
        assert json.loads(capsys.readouterr().out)["steps"] == 2
        shutil.rmtree(tmp_path / "data")
        (tmp_path / "data").mkdir()


class Contract(TaskContract):
    task = ""

    @pytest.fixture(autouse=True)
    def _data(self, tiny, tmp_path):
        family, data, _ = WAYS[self.task]
        flags = data(tmp_path)
        pairs = [
            flags[i + 1].removeprefix("task.").split("=") for i, flag in enumerate(flags) if flag == "--set"
        ]
        self.config = resolve(
            task=self.task, model=tiny(family), data_dir=str(tmp_path), options={"task": dict(pairs)}
        )

    def make(self):
        return configured_task(self.config)


class TestCausal(Contract):
    task = "causal-lm"


class TestMasked(Contract):
    task = "masked-lm"


class TestClassification(Contract):
    task = "text-classification"


class TestEmbedding(Contract):
    task = "text-embedding"


class TestImages(Contract):
    task = "image-classification"
