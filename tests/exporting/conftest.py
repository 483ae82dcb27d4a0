"""One export of each network that the tests share: torch's exporter takes a second or more."""

from __future__ import annotations

import pytest
import torch
from networks import mlp, quantized

import hybridkit.exporting.onnx as onnx_exporter
from hybridkit.exporting import Validation, export
from hybridkit.exporting.translation import translate
from hybridkit.runtime.modules import load_packed


@pytest.fixture(scope="session")
def mlp_inputs():
    return torch.randn(64, 33, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def mlp_network(mlp_inputs):
    torch.manual_seed(0)
    return quantized(mlp(), mlp_inputs)


@pytest.fixture(scope="session")
def mlp_file(mlp_network, mlp_inputs, tmp_path_factory):
    path = tmp_path_factory.mktemp("mlp") / "model.onnx"
    report = export(
        *mlp_network,
        path,
        example_inputs=[mlp_inputs[:1]],
        input_names=["x"],
        validation=Validation(batches=[(mlp_inputs,)]),
        metadata={"commit": "abc", "metrics": {"accuracy": 0.5}},
    )
    return path, report


@pytest.fixture(scope="session")
def mlp_graph(mlp_network, mlp_inputs):
    return translate(load_packed(*mlp_network), [mlp_inputs[:1]], ["x"], [{0: "batch"}], 18)


@pytest.fixture
def export_mlp(mlp_network, mlp_inputs, mlp_graph, monkeypatch):
    """Exports the MLP to a path, with one translation for all tests."""
    monkeypatch.setattr(onnx_exporter, "translate", lambda *_: mlp_graph.clone())

    def run(path, model=mlp_network[0], **options):
        options = {"validation": Validation(batches=[(mlp_inputs,)])} | options
        return export(model, mlp_network[1], path, example_inputs=[mlp_inputs[:1]], **options)

    return run
