"""Files of fp16: half the bytes of what is not packed, near the network, and the network stays as it was."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from torch import nn

import hybridkit
from hybridkit.errors import UsageError
from hybridkit.exporting import export
from hybridkit.exporting.half import in_half
from hybridkit.runtime.session import session

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


class Network(nn.Module):
    """A convolution with a norm, a linear layer twice under two names, and a table without weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8)
        self.first = self.second = nn.Linear(8, 8)
        self.table = Table()

    def forward(self, x, scale):
        hidden = self.norm(self.conv(x)).transpose(1, 2)
        hidden = self.table(torch.relu(self.second(torch.relu(self.first(hidden)))))
        return {"scaled": hidden * scale, "count": torch.ones(1, dtype=torch.int64)}


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("angles", torch.arange(8.0) * 1e-3)

    def forward(self, x):
        assert self.angles.dtype == torch.float32
        return x * self.angles.cos().to(x.dtype)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def inputs():
    return {"x": torch.randn(2, 4, 9), "scale": torch.rand(2, 1, 8)}


def test_inputs_and_outputs_stay_float32(network, inputs, tmp_path):
    before = {name: (id(x), x.dtype) for name, x in network.state_dict(keep_vars=True).items()}
    sizes = {}
    for half in (False, True):
        path = tmp_path / f"{half}.onnx"
        export(network, None, path, example_inputs=inputs, half=half)
        graph = onnx.load(path).graph
        kinds = Counter(each.data_type for each in graph.initializer)
        assert (kinds[HALF] > 3) == half
        values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
        assert values == {"x": FLOAT, "scale": FLOAT, "scaled": FLOAT, "count": onnx.TensorProto.INT64}
        sizes[half] = sum(len(each.raw_data) for each in graph.initializer if each.data_type in (FLOAT, HALF))
        made = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = made.run(["scaled"], {name: x.numpy() for name, x in inputs.items()})[0]
        want = network(**inputs)["scaled"].detach()
        np.testing.assert_allclose(found, want, rtol=1e-2 if half else 1e-5, atol=1e-2 if half else 1e-5)
    assert sizes[True] < 0.7 * sizes[False]
    assert {name: (id(x), x.dtype) for name, x in network.state_dict(keep_vars=True).items()} == before


def test_a_tied_weight_stays_one(network):
    with in_half(network):
        assert network.first.weight is network.second.weight
        assert network.first.weight.dtype == torch.float16
        assert network.norm.running_mean.dtype == torch.float16
    assert network.first.weight.dtype == torch.float32


@pytest.mark.parametrize(("activations", "target"), [("int8", "onnx"), ("float", "matmulnbits")])
def test_packed_layers_between_halves(activations, target, tmp_path):
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = transformers.BertConfig(**shape, vocab_size=96, max_position_embeddings=32)
    network = transformers.BertModel(config, add_pooling_layer=False).eval()
    given = {"input_ids": torch.randint(0, 96, (3, 9)), "attention_mask": torch.ones(3, 9, dtype=torch.int64)}
    packed = hybridkit.quantize(
        network, quantizer="ternary-mse", activations=activations, embeddings=8, example_inputs=given
    ).packed
    path = tmp_path / "a.onnx"
    report = export(network, packed, path, example_inputs=given, target=target, half=True)
    assert report.verification.loss < 1e-3
    kinds = Counter(each.data_type for each in onnx.load(path).graph.initializer)
    assert kinds[HALF] >= 6  # norms
    assert kinds[FLOAT] >= 6  # scales of packed layers
    found = session(path, threads=1).run(None, {name: x.numpy() for name, x in given.items()})
    assert found[0].dtype == np.float32


def test_half_is_for_onnx_files(network, inputs, tmp_path):
    with pytest.raises(UsageError, match="--half is for ONNX files"):
        export(network, None, tmp_path / "a.gguf", target="gguf", example_inputs=inputs, half=True)
