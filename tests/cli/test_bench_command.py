"""`hybridkit bench`: what its arguments mean, and what it prints and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from hybridkit.bench import plots
from hybridkit.cli import run
from hybridkit.cli.bench import SECTIONS, _parse
from hybridkit.errors import UsageError

FOREIGN = (
    '<ir_version: 8, opset_import: ["" : 18]> g (float[batch, 4] x) => (float[batch, 4] y) { y = Relu (x) }'
)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(FOREIGN), path)
    return path


@pytest.mark.parametrize(
    ("what", "model", "expected"),
    [
        (None, None, ((), None)),
        ("convergence", None, (("convergence",), None)),
        ("inference", None, (("inference",), None)),
        ("inference", "a.onnx", (("inference",), "a.onnx")),
        ("dir/a.onnx", None, (("inference",), "dir/a.onnx")),
        ("hf:owner/name", None, (("inference",), "hf:owner/name")),
        (str(Path(__file__).parent), None, (("inference",), str(Path(__file__).parent))),
    ],
)
def test_what_the_arguments_mean(what, model, expected):
    assert _parse(what, model) == expected


@pytest.mark.parametrize(
    ("what", "model", "message"),
    [
        ("convergense", None, "did you mean 'convergence'"),
        ("model.pt", None, "no section 'model.pt'"),
        ("quantization", "a.onnx", "say hybridkit bench inference a.onnx"),
        ("a.onnx", "b.onnx", "two models"),
    ],
)
def test_arguments_that_do_not_fit(what, model, message):
    with pytest.raises(UsageError, match=message):
        _parse(what, model)


def test_the_sections_are_those_of_the_suite():
    from hybridkit.bench import suite

    assert suite.SECTIONS == SECTIONS


def test_json_is_the_saved_document_and_alone_on_stdout(model, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert run(["bench", str(model), "--quick", "--threads", "1", "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document == json.loads((out / "results.json").read_text())
    assert document["schema"] == "hybridkit/bench/2"
    assert document["settings"]["sections"] == ["inference"]
    assert document["convergence"] is None
    assert document["claims"] == []
    assert document["settings"]["threads"] == [1]
    assert (out / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert "written: " in printed.err


def test_tables_are_printed(model, tmp_path, capsys):
    assert run(["bench", "inference", str(model), "--quick", "--threads", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Inference of m.onnx" in printed
    assert "Latency in milliseconds" in printed
    assert "no packed layers" in printed


def test_brackets_are_printed_as_they_are(capsys, monkeypatch):
    from hybridkit.bench import tables
    from hybridkit.cli.bench import _print

    table = tables.TextTable("[title]", ("[column]",), [("1.0 % [never, 2.0]",)], ["[note]"])
    monkeypatch.setattr(tables, "machine_line", lambda results: "[machine]")
    monkeypatch.setattr(tables, "tables", lambda results: [table])
    _print(None)
    printed = capsys.readouterr().out
    for text in ("[title]", "[column]", "1.0 % [never, 2.0]", "[note]", "[machine]"):
        assert text in printed


def test_without_matplotlib_there_is_a_note(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    assert run(["bench", str(model), "--quick", "--threads", "1", "--out", str(tmp_path / "o")]) == 0
    assert "pip install 'hybridkit[plots]'" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["absent.onnx"], 1),
        (["--seeds", "0"], 2),
        (["nothing"], 2),
        (["--task", "no"], 2),
        (["convergence", "--epochs", "3"], 2),
        (["convergence", "--task", "no"], 2),
        (["convergence", "--full", "--task", "a.b:c"], 2),
        (["quantization", "--full"], 2),
        (["--steps", "5"], 2),
        (["convergence", "--steps", "5"], 2),
    ],
)
def test_mistakes_are_one_line(arguments, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["bench", *arguments]) == code
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("hybridkit: error: ")


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from hybridkit.cli import run; run(['bench', '--help']);"
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
