"""`hybridkit quantize FOLDER --calibrate DATA`."""

from __future__ import annotations

import json

import pytest
import torch
from folders import WORDS, network, sentences, write

from hybridkit.cli import run
from hybridkit.packing.model import PackedModel
from hybridkit.runtime.modules import load_packed

HOW = ["--samples", "16", "--tune-steps", "10", "--joint-steps", "10", "--json"]


@pytest.fixture
def text(tmp_path):
    return sentences(tmp_path / "text.txt", 200)


def told(capsys, *arguments):
    code = run(["quantize", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out.startswith("{") else None, printed.err


@torch.no_grad()
def outputs(model):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, WORDS, (4, 20), generator=generator)
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return found.logits if "logits" in found else found.last_hidden_state


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "modernbert", "gemma3", "qwen3"])
def test_it_is_closer_than_rounding(tmp_path, text, capsys, family):
    write(family, tmp_path / "m")
    how = ["--quantizer", "ternary-mse", "--granularity", "group:32"]
    plain, better = tmp_path / "plain.hk.safetensors", tmp_path / "better.hk.safetensors"
    assert told(capsys, tmp_path / "m", "-o", plain, *how, "--json")[0] == 0
    code, document, _ = told(capsys, f"hf:{tmp_path / 'm'}", "-o", better, *how, *HOW, "--calibrate", text)
    assert code == 0
    assert document["blocks"]
    assert all(block["tuned"] <= block["fitted"] for block in document["blocks"])
    assert not list(tmp_path.glob("*.calibration"))
    original = network(family)
    target = outputs(original)
    errors = [
        float((outputs(load_packed(original, PackedModel.load(path))) - target).square().mean())
        for path in (plain, better)
    ]
    assert errors[1] < (1.1 if family == "modernbert" else 0.9) * errors[0]  # there the head decides


def test_it_exports(tmp_path, text, capsys):
    write("llama", tmp_path / "m")
    packed = tmp_path / "m.hk.safetensors"
    arguments = [tmp_path / "m", "-o", packed, *HOW, "--calibrate", text, "--activations", "int8"]
    assert told(capsys, *arguments, "--embeddings", "8")[0] == 0
    assert run(["export", str(tmp_path / "m.onnx"), "--from", str(packed)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "3"], "--samples goes with --calibrate"),
        (["--calibrate", "absent.txt"], "absent.txt"),
        (["--calibrate", "TEXT", "--task", "no-such-task"], "no-such-task"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, capsys, arguments, message):
    write("llama", tmp_path / "m")
    capsys.readouterr()
    given = [str(text) if a == "TEXT" else a for a in arguments]
    code, _, err = told(capsys, tmp_path / "m", "-o", tmp_path / "o.hk.safetensors", *given)
    assert code in (1, 2)
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "o.hk.safetensors").exists()
    assert not list(tmp_path.glob("*.calibration"))


def test_networks_of_ones_own_are_refused(tmp_path, text, capsys, monkeypatch):
    (tmp_path / "own_net.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(4, 4)\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = told(capsys, "own_net:make", "-o", tmp_path / "o.hk.safetensors", "--calibrate", text)
    assert code == 2
    assert "pretrained networks" in err
