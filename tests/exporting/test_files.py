"""A file appears whole and verified, or what was there before stays."""

from __future__ import annotations

import os

import numpy as np
import onnx_ir as ir
import pytest
from networks import run_ort

import hybridkit.exporting.onnx as onnx_exporter
from hybridkit.errors import FileError, GateError
from hybridkit.exporting import files, lowering


@pytest.fixture
def external(monkeypatch):
    monkeypatch.setattr(files, "EXTERNAL_BYTES", 500)
    monkeypatch.setattr(files, "_SMALL", 100)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def spoil(monkeypatch, factor):
    """Make the exporter write wrong scales."""
    portable = lowering.portable

    def wrong(model):
        portable(model)
        for name, value in model.graph.initializers.items():
            if name.endswith("scale"):
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)

    monkeypatch.setattr(lowering, "portable", wrong)


@pytest.mark.parametrize("factor", [1.5, np.nan])
def test_a_file_that_differs_from_the_network_is_not_written(export_mlp, tmp_path, monkeypatch, factor):
    spoil(monkeypatch, factor)
    with pytest.raises(GateError, match=r"m\.onnx was not written") as caught:
        export_mlp(tmp_path / "m.onnx")
    assert caught.value.exit_code == 3
    assert names(tmp_path) == []


def test_a_missed_gate_leaves_the_old_file(export_mlp, tmp_path, monkeypatch, external):
    export_mlp(tmp_path / "m.onnx")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(before) == 2
    spoil(monkeypatch, 2)
    with pytest.raises(GateError):
        export_mlp(tmp_path / "m.onnx")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_external_data(export_mlp, mlp_file, mlp_inputs, tmp_path, external):
    path = tmp_path / "m.onnx"
    report = export_mlp(path)
    model, data = names(tmp_path)
    assert model == "m.onnx"
    assert data.startswith("m.onnx.")
    assert data.endswith(".data")
    assert report.file_bytes == path.stat().st_size + (tmp_path / data).stat().st_size
    np.testing.assert_array_equal(run_ort(path, mlp_inputs), run_ort(mlp_file[0], mlp_inputs))


def test_replacing_leaves_no_old_data(export_mlp, tmp_path, monkeypatch, external):
    path = tmp_path / "m.onnx"
    (tmp_path / "m.onnx.mine.data").write_text("somebody else's")
    export_mlp(path)
    first = names(tmp_path)
    export_mlp(path)
    assert names(tmp_path) == first, "the same weights have the same name"
    export_mlp(path, target="fp32")
    second = names(tmp_path)
    assert len(second) == len(first) == 3
    assert second != first
    monkeypatch.setattr(files, "EXTERNAL_BYTES", 10**9)
    export_mlp(path)
    assert names(tmp_path) == ["m.onnx", "m.onnx.mine.data"]


def test_an_interrupted_replacement_leaves_the_old_model(
    export_mlp, mlp_inputs, tmp_path, monkeypatch, external
):
    path = tmp_path / "m.onnx"
    export_mlp(path)
    before = names(tmp_path)
    want = run_ort(path, mlp_inputs)
    replace = os.replace

    def fails(source, target):
        if str(target).endswith(".onnx"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(FileError, match="No space left"):
        export_mlp(path, target="fp32")
    assert names(tmp_path) == before
    np.testing.assert_array_equal(run_ort(path, mlp_inputs), want)


def test_any_failure_removes_the_temporary_folder(export_mlp, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_exporter.verify, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_mlp(tmp_path / "m.onnx")
    assert names(tmp_path) == []


def test_model_bytes_is_the_size_of_the_file(mlp_file):
    path, report = mlp_file
    assert files.model_bytes(ir.load(path)) == pytest.approx(report.file_bytes, rel=0.02)
