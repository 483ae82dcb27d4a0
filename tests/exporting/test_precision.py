"""A network in bfloat16 becomes a float32 file, and what was cast is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import run_ort
from torch import nn

from hybridkit.cli import run
from hybridkit.exporting import Validation, export
from hybridkit.quant.post_training import quantize
from hybridkit.runtime.session import session


class Net(nn.Module):
    """A buffer and parameters, one of them float32, and integers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.register_buffer("shift", torch.linspace(-1, 1, 64))
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.norm(self.first(x) + self.shift).relu())


def network():
    torch.manual_seed(0)
    return Net().bfloat16().eval()


# What is cast is decided before the target: each of them once, and each kind of network.
@pytest.mark.parametrize(
    ("target", "activations"),
    [("onnx", None), ("onnx", "float"), ("onnx", "int8"), ("fp32", "int8"), ("matmulnbits", "float")],
)
def test_bfloat16_is_cast_and_said(target, activations, tmp_path):
    net, x = network(), torch.randn(3, 64).bfloat16()
    packed = quantize(net, activations=activations).packed if activations else None
    path = tmp_path / "net.onnx"
    report = export(net, packed, path, example_inputs=[x], input_names=["x"], target=target)
    assert report.cast == (
        "Cast from bfloat16 to float32, as ONNX Runtime computes on the CPU: "
        "7 tensors of the network, the input 'x'"
    )
    assert session(path).get_inputs()[0].type == "tensor(float)"
    assert {t.dtype for t in net.state_dict().values()} == {torch.bfloat16}, "the caller's stays as it was"
    if packed is None:
        want = net.float()(x.float()).detach().numpy()
        np.testing.assert_allclose(run_ort(path, x.float()), want, rtol=1e-5, atol=1e-5)


def test_validation_data_is_cast_too(tmp_path):
    x = torch.randn(6, 64).bfloat16()
    report = export(
        network(),
        None,
        tmp_path / "net.onnx",
        example_inputs=[x[:1]],
        validation=Validation(
            batches=[(x,)], loss=lambda output, batch: (output - batch[0][:, :10]).square().mean()
        ),
    )
    assert report.verification.samples == 6
    assert report.verification.network_loss > 0


def test_only_what_is_bfloat16(tmp_path):
    net = network()
    net.last.float()
    ids = export(
        nn.Sequential(nn.Embedding(9, 4).bfloat16()),
        None,
        tmp_path / "e.onnx",
        example_inputs=[torch.tensor([1, 2])],
    )
    assert ids.cast.endswith(": 1 tensors of the network")
    plain = export(net.float(), None, tmp_path / "net.onnx", example_inputs=[torch.randn(2, 64)])
    assert plain.cast == ""


def test_the_command_prints_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "halfnet.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(8, 4).bfloat16()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run(["export", "net.onnx", "--model", "halfnet:make", "--input", "x:1,8"]) == 0
    assert "Cast from bfloat16 to float32" in capsys.readouterr().out
