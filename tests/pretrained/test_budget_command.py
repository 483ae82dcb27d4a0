"""`hybridkit quantize FOLDER --calibrate DATA --within 1%` and `--max-size 40KB`."""

from __future__ import annotations

import json

import pytest
import torch
from folders import WORDS, network, sentences, write

from hybridkit.cli import run
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained.assets import beside
from hybridkit.runtime.modules import load_packed

HOW = ["--samples", "16", "--tune-steps", "5", "--joint-steps", "2"]


@pytest.fixture
def text(tmp_path):
    return sentences(tmp_path / "text.txt", 400)


def told(capsys, *arguments):
    code = run(["quantize", *map(str, arguments), "--json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out.startswith("{") else None, printed.err


@pytest.mark.parametrize(
    ("family", "metric", "share"), [("llama", "perplexity", 0.002), ("bert", "cosine", 0.02)]
)
def test_the_smallest_file_within_a_loss(tmp_path, text, capsys, family, metric, share):
    write(family, tmp_path / "m")
    packed = tmp_path / "m.hk.safetensors"
    picture = tmp_path / "frontier.png"
    arguments = [tmp_path / "m", "-o", packed, *HOW, "--calibrate", text, "--frontier", picture]
    code, document, _ = told(capsys, *arguments, "--within", f"{100 * share}%", "--float-dtype", "fp16")
    assert code == 0
    report = document["budget"]
    assert report["metric"] == metric
    taken = report["tried"][report["taken"]]
    assert taken["lost"] <= share
    assert taken["bytes"] == packed.stat().st_size == document["sizes"]["file_bytes"]
    assert len({layer["bits"] for layer in document["layers"]}) > 1 or len(report["tried"]) > 1
    sizes = [point["bytes"] for point in report["frontier"]]
    assert sizes == sorted(sizes)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    original = network(family)
    ids = torch.randint(3, WORDS, (2, 20), generator=torch.Generator().manual_seed(5))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    load_packed(original, PackedModel.load(packed))(**given)
    assert (beside(packed) / "config.json").is_file()
    assert not list(tmp_path.glob(".*.tmp"))


def test_the_best_file_of_a_size(tmp_path, text, capsys):
    write("llama", tmp_path / "m")
    lost = []
    for size in (20_000, 40_000):
        packed = tmp_path / f"{size}.hk.safetensors"
        arguments = [tmp_path / "m", "-o", packed, *HOW, "--calibrate", text]
        code, document, err = told(capsys, *arguments, "--max-size", f"{size / 1000}KB")
        assert code == 0, err
        assert 0.8 * size < packed.stat().st_size <= size
        report = document["budget"]
        lost.append(report["tried"][report["taken"]]["expected"])
    assert lost[0] > lost[1]


@pytest.mark.parametrize(
    ("budget", "message"),
    [(["--max-size", "2KB"], "the smallest has"), (["--within", "0.0000001%"], "allow more")],
)
def test_a_missed_budget_leaves_nothing(tmp_path, text, capsys, budget, message):
    write("bert", tmp_path / "m")
    capsys.readouterr()
    packed = tmp_path / "m.hk.safetensors"
    code, _, err = told(capsys, tmp_path / "m", "-o", packed, *HOW, "--calibrate", text, *budget)
    assert code == 3
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"m", "text.txt"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--within", "1%"], "--within goes with --calibrate"),
        (["--calibrate", "TEXT", "--within", "1%", "--max-size", "1MB"], "two budgets"),
        (["--calibrate", "TEXT", "--within", "lots"], "as in 1%"),
        (["--calibrate", "TEXT", "--max-size", "1 TB"], "as in 40MB"),
        (["--calibrate", "TEXT", "--within", "1%", "--embeddings", "8"], "a budget decides"),
        (["--calibrate", "TEXT", "--frontier", "x.png"], "--frontier goes with"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, capsys, arguments, message):
    write("llama", tmp_path / "m")
    capsys.readouterr()
    given = [str(text) if a == "TEXT" else a for a in arguments]
    code, _, err = told(capsys, tmp_path / "m", "-o", tmp_path / "o.hk.safetensors", *given)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
