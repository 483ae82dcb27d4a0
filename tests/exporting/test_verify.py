"""What is compared, and what the gates let through."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save
from torch import nn

from hybridkit.errors import FileError, GateError, HybridkitError, UsageError
from hybridkit.exporting import Validation, files, verify
from hybridkit.exporting.protocol import Verification

EXACT = Verification(
    samples=10,
    max_abs=0.0,
    max_rel=0.0,
    top1_agreement=1.0,
    top1_misses=0,
    margin=1e-3,
    loss=0.5,
    network_loss=0.5,
)


@pytest.mark.parametrize("gate", ["float", "int8", "approximate"])
def test_gates_let_equal_outputs_pass(gate, tmp_path):
    verify.check_gate(EXACT, gate, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("gate", "change", "passes"),
    [
        ("float", {"max_rel": 0.9e-4}, True),
        ("float", {"max_rel": 1.1e-4}, False),
        ("float", {"max_rel": float("nan")}, False),
        ("int8", {"max_rel": 1e-2}, True),
        ("int8", {"top1_misses": 1}, False),
        ("int8", {"loss": 0.50009}, True),
        ("int8", {"loss": 0.50011}, False),
        ("int8", {"loss": float("nan")}, False),
        ("int8", {"loss": 0.503, "loss_margin": 4e-3}, True),  # a network that moves as far by itself
        ("int8", {"loss": 0.506, "loss_margin": 1.0}, False),  # but there is an end to it
        ("approximate", {"top1_misses": 5, "loss": 0.5049}, True),
        ("approximate", {"loss": 0.494}, False),
        ("approximate", {"loss": 0.0099, "network_loss": 0.0}, True),
        ("approximate", {"loss": 0.011, "network_loss": 0.0}, False),
        ("approximate", {"loss": float("nan")}, False),
    ],
)
def test_gates(gate, change, passes, tmp_path):
    found = dataclasses.replace(EXACT, **change)
    if passes:
        verify.check_gate(found, gate, tmp_path / "m.onnx")
    else:
        with pytest.raises(GateError, match="was not written"):
            verify.check_gate(found, gate, tmp_path / "m.onnx")


def add_model(path, addend):
    """x [batch, n] -> x + addend."""
    addend = np.asarray(addend, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "addend"], ["y"])],
        "add",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", len(addend)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", len(addend)])],
        [numpy_helper.from_array(addend, "addend")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_compare_measures_what_it_says(tmp_path):
    path = add_model(tmp_path / "m.onnx", [0.5, 0, 0])
    x = torch.tensor([[1.0, 1.2, -4.0], [3.0, 0.0, 1.0]])
    target = torch.tensor([1, 0])
    validation = Validation(
        batches=[(x[:1], target[:1]), (x[1:], target[1:])],
        inputs=lambda batch: batch[:1],
        loss=lambda y, batch: nn.functional.cross_entropy(y, batch[1]),
    )
    found = verify.compare(path, nn.Identity(), validation)
    assert found.samples == 2
    assert found.max_abs == pytest.approx(0.5)
    assert found.max_rel == pytest.approx(0.5 / 4)
    assert found.top1_agreement == 0.5
    assert found.top1_misses == 1
    assert found.margin == 1e-3
    moved = x + torch.tensor([0.5, 0, 0])
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(moved, target)), rel=1e-5)
    assert found.network_loss == pytest.approx(float(nn.functional.cross_entropy(x, target)), rel=1e-5)


def test_a_difference_within_the_margin_is_no_miss(tmp_path):
    path = add_model(tmp_path / "m.onnx", [0.001, 0])
    x = torch.tensor([[1.0, 1.0005], [1.0, 1.1]])
    found = verify.compare(path, nn.Identity(), Validation(batches=[(x,)]))
    assert found.top1_agreement == 0.5
    assert found.top1_misses == 0


def test_without_a_loss_the_relative_squared_error_stands_in(tmp_path):
    path = add_model(tmp_path / "m.onnx", [0.1])
    found = verify.compare(path, nn.Identity(), Validation(batches=[(torch.tensor([[2.0], [4.0]]),)]))
    assert found.network_loss == 0
    assert found.loss == pytest.approx(0.02 / 20, rel=1e-4)
    assert found.top1_agreement == 1


def test_equal_infinities_are_equal_and_nan_is_not(tmp_path):
    path = add_model(tmp_path / "m.onnx", [0, 0])
    masked = torch.tensor([[1.0, -torch.inf]])
    assert verify.compare(path, nn.Identity(), Validation(batches=[(masked,)])).max_rel == 0
    broken = Validation(batches=[(torch.tensor([[1.0, torch.nan]]),), (torch.ones(1, 2),)])
    assert np.isnan(verify.compare(path, nn.Identity(), broken).max_abs)


def test_no_samples(tmp_path):
    path = add_model(tmp_path / "m.onnx", [0])
    with pytest.raises(UsageError, match="no samples"):
        verify.compare(path, nn.Identity(), Validation(batches=[]))


def test_rounding_noise_is_that_of_the_layers(mlp_network, mlp_inputs):
    from hybridkit.runtime.modules import load_packed

    packed = load_packed(*mlp_network)
    validation = Validation(batches=[(mlp_inputs,)])
    before = packed(mlp_inputs)
    noise = verify.rounding_noise(packed, validation.batches, validation)
    assert 0 < noise.output < 0.1 * float(before.abs().max())
    assert 0 < noise.loss < 0.01
    assert torch.equal(packed(mlp_inputs), before), "the hooks are gone"
    assert verify.rounding_noise(nn.Identity(), validation.batches, validation) == verify.Noise(0, 0)


def test_form(tmp_path):
    path = add_model(tmp_path / "m.onnx", [0, 0])
    files.check_form(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Add", b"Adx"))
    with pytest.raises(HybridkitError, match="not valid ONNX"):
        files.check_form(path)
    with pytest.raises(FileError, match="cannot load"):
        verify.compare(path, nn.Identity(), Validation(batches=[]))
