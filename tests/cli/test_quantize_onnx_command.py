"""`hybridkit quantize model.onnx`: without torch, what is printed, and one line for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hybridkit.cli import run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    random = np.random.default_rng(0)
    sizes = {"first": (64, 128), "second": (128, 64)}
    tensors = [
        numpy_helper.from_array(random.normal(size=s).astype(np.float32), f"{n}.w") for n, s in sizes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "first.w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "second.w"], ["y"], "second"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 64]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "net.onnx",
    )
    np.savez(tmp_path / "in.npz", x=random.normal(size=(3, 64)).astype(np.float32))
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    return tmp_path


def operators(path: str) -> list[str]:
    return [n.op_type for n in onnx.load(path).graph.node]


def test_a_table_and_what_it_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", "net.onnx", "--activations", "int8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Layer ")
    assert "Error of weights" in out
    assert re.search(r"^first +MatMul +64x128 +1\.58 +0\.4\d\d\d +3,072 +32,768 +ternary-mse *$", out, re.M)
    assert re.search(
        r"^net\.packed\.onnx: [\d,]+ bytes, \d\.\d\dx smaller than net\.onnx \([\d,]+ b", out, re.M
    )
    assert re.search(r"^On generated inputs y has the relative error 0\.\d{4}, the cosine simi", out, re.M)
    assert operators("net.packed.onnx") == ["TernaryMatMulInt8", "Relu", "TernaryMatMulInt8"]


def test_json_with_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--quantizer", "nbit", "--set", "quantizer.bits=8", "--inputs", "in.npz", "--json"]
    assert run(["quantize", "net.onnx", "-o", "out.onnx", "--exclude", "sec*", *flags]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "hybridkit/quantize/1"
    report = document["report"]
    assert report["measured"] == "outputs"
    assert report["bytes_after"] == Path("out.onnx").stat().st_size
    assert document["ratio"] == report["bytes_before"] / report["bytes_after"]
    assert report["comparison"]["inputs"] == "given"
    first, second = report["layers"]
    assert (first["quantizer"], first["bits"]) == ("nbit", 8.0)
    assert first["error"] < 0.01
    assert (second["quantizer"], second["reason"]) == (None, "not chosen by name")
    halves = ["MatMulNBits", "MatMulNBits", "Add"]  # of 8 bits
    assert operators("out.onnx") == [*halves, "Relu", "MatMul"]


def test_a_budget_with_inputs_in_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "inputs").mkdir()
    draw = np.random.default_rng(5)
    for number in range(6):
        x = draw.normal(size=(1, 64)).astype(np.float32)
        np.savez(folder / "inputs" / f"{number}.npz", x=x)
    flags = ["--inputs", "inputs", "--within", "2%"]
    assert run(["quantize", "net.onnx", *flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    tried = document["budget"]["tried"][document["budget"]["taken"]]
    assert tried["lost"] <= 0.02
    assert tried["bytes"] == document["report"]["bytes_after"] == Path("net.packed.onnx").stat().st_size
    assert run(["quantize", "net.onnx", *flags, "--frontier", "f.png"]) == 0
    assert "taken" in capsys.readouterr().out
    assert Path("f.png").read_bytes()[:4] == b"\x89PNG"
    Path("net.packed.onnx").unlink()
    assert run(["quantize", "net.onnx", "--inputs", "inputs", "--max-size", "1KB"]) == 3
    assert not Path("net.packed.onnx").exists()


def test_more_bits_for_layers_above_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", "net.onnx", "--max-error", "0.2", "--more-bits", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["report"]["layers"]
    assert [layer["bits"] for layer in layers] == [4.0, 4.0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.onnx"], 1, "there is no model file none.onnx"),
        (["net.onnx", "-o", "out.bin"], 2, "its name ends in .onnx"),
        (["net.onnx", "-o", "net.onnx"], 2, "net.onnx is the source"),
        (
            ["net.onnx", "--codec", "base3"],
            2,
            "--codec is for networks, and net.onnx is an ONNX file; drop it",
        ),
        (["net.onnx", "--target-bits", "2"], 2, "--target-bits is for networks"),
        (["net.onnx", "--within", "1%"], 2, "a budget for an ONNX file needs --inputs"),
        (["net.onnx", "--max-size", "9KB", "--max-error", "1"], 2, "--max-error is what a budget decides"),
        (["net.onnx", "--frontier", "f.png"], 2, "--frontier goes with --within or --max-size"),
        (["net.onnx", "--quantize-all"], 2, "--quantize-all is for networks"),
        (["net.onnx", "--include", "third"], 2, "no layer's name fits 'third'; layers: first, second"),
        (["net.onnx", "--exclude", "*"], 1, "no layer was quantised; not chosen by name"),
        (["net.onnx", "--max-error", "0"], 2, "must be above 0"),
        (["net.onnx", "--max-error", "0.1"], 1, "no layer was quantised; error above 0.1"),
        (["net.onnx", "--more-bits"], 2, "--max-error"),
        (["net.onnx", "--quantizer", "ternary-mes"], 2, "no quantizer is called 'ternary-mes'; did you mean"),
        (["net.onnx", "--inputs", "other.npz"], 2, "has the inputs x, the file of inputs has z"),
        (["net.onnx", "--inputs", "net.onnx"], 1, "cannot be read as an .npz file"),
        (["some-run", "--max-error", "0.1"], 2, "--max-error is for ONNX files, and some-run is none"),
    ],
)
def test_mistakes_get_one_line_and_leave_no_file(
    arguments: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert run(["quantize", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(path.name for path in folder.iterdir()) == before


def test_no_torch_is_needed(folder: Path) -> None:
    script = """
import sys
sys.modules["torch"] = None  # importing it is an error
from hybridkit.cli import run
code = run(["quantize", "net.onnx", "-o", "out.onnx", "--inputs", "in.npz", "--json"])
assert sys.modules["torch"] is None
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"]["opset"] == 18
    assert (folder / "out.onnx").is_file()
