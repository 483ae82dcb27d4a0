"""Groups in exported files, and packed networks that export takes alone."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import hybridkit
from hybridkit.errors import UsageError
from hybridkit.exporting import export
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert
from hybridkit.quant.prepare import prepare_qat_
from hybridkit.runtime.network import PackedNetwork, pack


class Network(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.line = nn.Conv1d(width, 24, 3, padding=1)
        self.up = nn.Linear(24, 40)
        self.head = nn.Linear(40, 5)

    def forward(self, tokens):
        x = self.line(self.embed(tokens).transpose(1, 2)).transpose(1, 2)
        return self.head(torch.relu(self.up(x)))


TOKENS = torch.arange(20).view(4, 5)


@pytest.mark.parametrize(
    ("name", "activations", "size", "target"),
    [
        ("ternary-mse", "int8", 7, "onnx"),
        ("ternary-mse", "int8", 16, "onnx"),
        ("binary", "float", 32, "onnx"),
        ("binary", "float", 16, "matmulnbits"),
    ],
)
def test_groups_are_exported(tmp_path, name, size, activations, target):
    torch.manual_seed(0)
    how = QuantConfig(weights=name, granularity=f"group:{size}", activations=activations, quantize_all=True)
    network = pack(prepare_qat_(Network(), how))
    path = tmp_path / "m.onnx"
    report = export(network, path, example_inputs=(TOKENS,), target=target)
    assert report.verification is not None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": TOKENS.numpy()})
    with torch.no_grad():
        expected = network(TOKENS).numpy()
    if target == "onnx":
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert ("MatMulNBits" in operators) == (target == "matmulnbits")
    prefix = "NBit1" if name == "binary" else "NBit2"
    ours = f"{prefix}MatMul{'Int8' if activations == 'int8' else 'Float'}"
    assert (ours in operators) == (target == "onnx" and size in (16, 32))


def test_pack_gives_something_that_runs_and_is_saved(tmp_path):
    torch.manual_seed(0)
    trained = prepare_qat_(Network())
    network = hybridkit.pack(trained, metadata={"task": "t"})
    assert isinstance(network, PackedNetwork)
    with torch.no_grad():
        assert torch.equal(network(TOKENS), trained.eval()(TOKENS))
    sizes = network.save(tmp_path / "m.hk.safetensors")
    assert sizes.file_bytes == (tmp_path / "m.hk.safetensors").stat().st_size
    loaded = hybridkit.PackedModel.load(tmp_path / "m.hk.safetensors")
    assert loaded.metadata["task"] == "t"
    afterwards = hybridkit.pack(
        Network(), QuantConfig(weights="binary", activations="float"), codec="one-bit"
    )
    assert {layer.codec for layer in afterwards.packed.layers.values()} == {"one-bit"}


def nodes(path):
    return [(node.op_type, node.domain) for node in onnx.load(path).graph.node]


def test_export_takes_a_packed_or_a_prepared_network_alone(tmp_path):
    torch.manual_seed(0)
    trained = prepare_qat_(Network())
    export(trained, convert(trained), tmp_path / "both.onnx", example_inputs=(TOKENS,))
    export(pack(trained), tmp_path / "packed.onnx", example_inputs=(TOKENS,))
    export(trained, tmp_path / "prepared.onnx", example_inputs=(TOKENS,))
    assert (
        nodes(tmp_path / "both.onnx") == nodes(tmp_path / "packed.onnx") == nodes(tmp_path / "prepared.onnx")
    )
    assert "hybridkit" in {domain for _, domain in nodes(tmp_path / "packed.onnx")}
    plain, x = nn.Linear(4, 4), torch.randn(2, 4)
    export(plain, str(tmp_path / "plain.onnx"), example_inputs=(x,))
    export(plain, None, tmp_path / "none.onnx", example_inputs=(x,))
    assert nodes(tmp_path / "plain.onnx") == nodes(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="say where to write the file"):
        export(trained, convert(trained), example_inputs=(TOKENS,))


def test_a_packed_network_is_not_loaded_with_others():
    torch.manual_seed(0)
    network = pack(prepare_qat_(Network()))
    assert hybridkit.load_packed(network.module, network.packed) is network.module
    with pytest.raises(UsageError, match="runs other packed layers already"):
        hybridkit.load_packed(network.module, pack(prepare_qat_(Network())).packed)


GROUPS = {"bits": 4, "group_size": 32}
HEADS = [{"bits": 8}, {"bits": 4}, GROUPS, {**GROUPS, "offset": True}]


class Tied(nn.Module):
    def __init__(self, entries, width):
        super().__init__()
        self.embed = nn.Embedding(entries, width)
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, entries, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.relu(self.inner(self.embed(tokens))))


# 70 entries: tiles would pad too much. 90 columns: MatMulNBits pads its rows.
@pytest.mark.parametrize(
    ("entries", "width", "activations"), [(70, 128, "int8"), (96, 90, "float"), (96, 128, "int8")]
)
@pytest.mark.parametrize("head", HEADS)
def test_a_tied_head_and_embedding_are_stored_once(tmp_path, head, entries, width, activations):
    torch.manual_seed(0)
    layers = {name: {"quantizer": "nbit", **head} for name in ("embed", "head")}
    how = QuantConfig(weights="ternary-mse", activations=activations, quantize_all=True, layers=layers)
    network, path = pack(prepare_qat_(Tied(entries, width), how)), tmp_path / "m.onnx"
    tokens = torch.arange(entries).view(2, -1)
    export(network, path, example_inputs=(tokens,))  # which compares it with the network
    graph = onnx.load(path).graph
    stored = sum(len(x.raw_data) for x in graph.initializer if x.data_type == onnx.TensorProto.UINT8)
    inner = width * width // 4
    padded = -(-width // 128) * 128 if not head.get("group_size") else -(-width // 32) * 32
    assert stored <= 1.2 * (entries * padded * head["bits"] / 8 + inner) + 500
