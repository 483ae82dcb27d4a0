"""Batches by name, samples of different length, streams, and outputs that are no tensor: the whole way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import token_task
import torch

from hybridkit.cli import run as hybridkit
from hybridkit.packing.model import PackedModel
from hybridkit.runtime.modules import load_packed
from hybridkit.testing import TaskContract
from hybridkit.training.config import resolve
from hybridkit.training.trainer import Trainer

KINDS = ("memory", "dataset", "stream")
FLAGS = ("--hybrid", "--ternary", "--qat", "--batch-size", "16", "--eval-every", "4", "--threads", "1")


@pytest.mark.parametrize("kind", KINDS)
def test_from_samples_to_an_exported_file(kind, tmp_path, capsys):
    named = f"token_task:{kind}"
    runs = ["--run-dir", str(tmp_path)]
    assert hybridkit(["train", "--task", named, *FLAGS, *runs, "--max-steps", "12", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packed"]["test"]["loss"] == pytest.approx(found["test"]["loss"], abs=1e-5)
    assert hybridkit(["export", str(tmp_path / "m.onnx"), "--from", found["run"], "--task", named]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert [x.name for x in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [x.name for x in session.get_outputs()] == ["pooled", "logits"]
    batch = token_task.padded(token_task.sentences(5, seed=9))
    network = load_packed(token_task.Encoder(), PackedModel.load(f"{found['run']}/model.hk.safetensors"))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = network(**inputs)
    got = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    for name, array in zip(("pooled", "logits"), got, strict=True):
        np.testing.assert_allclose(array, expected[name].numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_where_it_was(kind, tmp_path, capsys):
    named = f"token_task:{kind}"

    def losses(folder, *steps):
        runs = ["--run-dir", str(folder), "--json"]
        assert hybridkit(["train", "--task", named, *FLAGS, *runs, "--max-steps", steps[0]]) == 0
        found = json.loads(capsys.readouterr().out)
        for more in steps[1:]:
            again = ["--resume", found["run"], "--task", named, "--max-steps", more, "--json"]
            assert hybridkit(["train", *again]) == 0
            capsys.readouterr()
        lines = map(json.loads, Path(found["run"], "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["event"] == "step"]

    # the plan and the ramp know the length of the run: what is the same are the samples of each step
    whole, parts = losses(tmp_path / "a", "9"), losses(tmp_path / "b", "9", "11")
    assert parts[:9] == whole
    assert len(parts) == 11


def test_padding_and_layout_of_the_data_change_nothing():
    """Full precision: the same samples in the same order, padded to the batch or to all."""
    found = []
    for kind in ("memory", "dataset"):
        trainer = Trainer.seeded(resolve(task=f"token_task:{kind}", max_steps=5, threads=1))
        found.append([trainer.step()["loss"] for _ in range(5)])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_stream_has_no_clusters_and_needs_an_end(capsys):
    named = ["train", "--task", "token_task:stream"]
    assert hybridkit([*named, "--hybrid", "--data-clusters", "4", "--max-steps", "3"]) == 2
    assert "cannot be clustered" in capsys.readouterr().err
    assert hybridkit([*named, "--epochs", "2"]) == 2
    assert "--max-steps" in capsys.readouterr().err


class TestMemory(TaskContract):
    def make(self):
        return token_task.memory


class TestStream(TaskContract):
    def make(self):
        return token_task.stream
