"""`hybridkit bench` measures what it is given as a source, beside its peers."""

from __future__ import annotations

import json

from folders import write

from hybridkit.bench import inference, suite
from hybridkit.bench.memory import Memory
from hybridkit.cli import run
from hybridkit.errors import UsageError

QUICK = ["--quick", "--threads", "1", "--json"]


def test_a_folder_is_measured_in_full_precision(tmp_path, capsys):
    write("bert", tmp_path / "small-bert")
    out = tmp_path / "out"
    assert run(["bench", f"hf:{tmp_path / 'small-bert'}", *QUICK, "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)["inference"]
    assert found["model"] == "small-bert.onnx"
    assert found["packed_layers"] == 0
    names = {variant["variant"] for variant in found["variants"]}
    assert {"small-bert.onnx", "int8 (dynamic)"} <= names
    assert all(each["timing"]["p50_ms"] > 0 for each in found["latencies"])


def test_a_folder_needs_no_prefix(tmp_path, capsys, monkeypatch):
    def measured(path, **how):
        raise UsageError(f"this was to be measured: {path.name}, {path.exists()}")

    monkeypatch.setattr(suite, "measure_inference", measured)
    write("bert", tmp_path / "small-bert")
    assert run(["bench", str(tmp_path / "small-bert"), *QUICK, "--out", str(tmp_path / "out")]) == 2
    assert "measured: small-bert.onnx, True" in capsys.readouterr().err


def test_a_packed_file_of_it_has_a_twin(tmp_path, capsys, monkeypatch):
    # a process for each variant, as in the test above
    monkeypatch.setattr(inference, "measure_memory", lambda *_, **__: Memory(1, 1))
    write("bert", tmp_path / "m")
    packed = tmp_path / "small.hk.safetensors"
    assert run(["quantize", str(tmp_path / "m"), "-o", str(packed)]) == 0
    capsys.readouterr()
    assert run(["bench", "inference", str(packed), *QUICK, "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)["inference"]
    assert (found["model"], found["packed_layers"] > 0) == ("small.onnx", True)
    assert "fp32 twin" in {variant["variant"] for variant in found["variants"]}


def test_what_is_no_model_is_said(tmp_path, capsys):
    (tmp_path / "m").mkdir()
    assert run(["bench", str(tmp_path / "m"), *QUICK, "--out", str(tmp_path / "out")]) == 1
    assert "there is no run here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
