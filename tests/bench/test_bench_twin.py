"""The fp32 twin of a packed file computes what the dequantised network computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.bench.twin import dequantize_blocks, write_twin
from hybridkit.errors import FileError
from hybridkit.exporting import export
from hybridkit.packing.codecs import codec
from hybridkit.quant.convert import convert
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.prepare import prepare_qat
from hybridkit.runtime.session import session

SEED = 3


class Mixed(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.conv = nn.Conv1d(16, 24, 3, padding=1)
        self.linear = nn.Linear(24, 32)
        self.out = nn.Linear(32, 10, bias=False)

    def forward(self, ids):
        hidden = self.conv(self.embedding(ids).transpose(1, 2)).transpose(1, 2)
        return self.out(torch.relu(self.linear(hidden)))


def prepared(quantizer, options, activations):
    torch.manual_seed(SEED)
    model = prepare_qat(
        Mixed(), quantizer=quantizer, options=options, activations=activations, quantize_all=True
    )
    return model.eval()


def dequantized(model):
    """The same network in fp32 with the weights that the codes and scales stand for."""
    torch.manual_seed(SEED)
    plain, packed = Mixed(), convert(model)
    state = plain.state_dict()
    for name, layer in packed.layers.items():
        state[f"{name}.weight"] = torch.from_numpy(layer.dequantize()).reshape(state[f"{name}.weight"].shape)
    plain.load_state_dict(state)
    return plain


def write(model, path, target):
    ids = torch.randint(0, 40, (2, 7))
    axes = [{0: "batch", 1: "length"}]
    export(model, convert(model), path, example_inputs=(ids,), dynamic_axes=axes, target=target, verify=False)


def outputs(path, ids):
    return session(path, threads=1, log_severity_level=3).run(None, {"input": ids})[0]


@pytest.mark.parametrize(("quantizer", "activations"), [("ternary-absmean", "int8"), ("binary", "float")])
def test_packed_layers_become_plain_ones(quantizer, activations, tmp_path):
    model = prepared(quantizer, {}, activations)
    assert set(qat_layers(model)) == {"embedding", "conv", "linear", "out"}
    write(model, tmp_path / "m.onnx", "onnx")
    assert write_twin(tmp_path / "m.onnx", tmp_path / "twin.onnx") == 4
    twin = onnx.load(tmp_path / "twin.onnx")
    assert {node.domain for node in twin.graph.node} == {""}
    assert not twin.functions
    assert "Round" not in {node.op_type for node in twin.graph.node}
    ids = np.random.default_rng(0).integers(0, 40, (3, 9))
    expected = dequantized(model)(torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(outputs(tmp_path / "twin.onnx", ids), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "target"),
    [({"bits": 2, "group_size": 16}, "onnx"), ({"bits": 8}, "matmulnbits")],
)
def test_blocks_become_plain_matrices(options, target, tmp_path):
    model = prepared("nbit", options, "float")
    path = tmp_path / ("m.matmulnbits.onnx" if target == "matmulnbits" else "m.onnx")
    write(model, path, target)
    assert write_twin(path, tmp_path / "twin.onnx") == (2 if target == "matmulnbits" else 4)
    assert {node.domain for node in onnx.load(tmp_path / "twin.onnx").graph.node} == {""}
    ids = np.random.default_rng(0).integers(0, 40, (3, 9))
    expected = dequantized(model)(torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(outputs(tmp_path / "twin.onnx", ids), expected, rtol=1e-4, atol=1e-6)


class Tied(nn.Module):
    """A head that shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


def test_an_embedding_that_reads_the_head_s_tiles_becomes_a_plain_one(tmp_path):
    torch.manual_seed(SEED)
    options = {"bits": 8}
    model = prepare_qat(
        Tied(), quantizer="nbit", options=options, activations="float", quantize_all=True
    ).eval()
    write(model, tmp_path / "m.onnx", "onnx")
    assert "NBit8Gather" in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert write_twin(tmp_path / "m.onnx", tmp_path / "twin.onnx") == 2
    assert {node.domain for node in onnx.load(tmp_path / "twin.onnx").graph.node} == {""}
    ids = np.random.default_rng(0).integers(0, 64, (3, 9))
    expected = model(torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(outputs(tmp_path / "twin.onnx", ids), expected, rtol=1e-4, atol=1e-6)


def test_a_file_without_packed_layers_has_no_twin(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[n] x) => (float[n] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert write_twin(tmp_path / "m.onnx", tmp_path / "twin.onnx") == 0
    assert not (tmp_path / "twin.onnx").exists()


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\x08\x0a"])
def test_what_is_no_model_gets_one_line(content, tmp_path):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=r"m\.onnx") as error:
        write_twin(path, tmp_path / "twin.onnx")
    assert "\n" not in str(error.value)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([2, 4, 8]),
    st.sampled_from([16, 32]),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from(["default", "packed", "float"]),
    st.integers(0, 2**32 - 1),
)
def test_dequantised_blocks_follow_the_definition(bits, block, N, K, zeros, seed):
    generator = np.random.default_rng(seed)
    blocks = -(-K // block)
    digits = generator.integers(0, 1 << bits, (N, blocks * block))
    scales = generator.normal(size=(N, blocks)).astype(np.float32)
    half = 1 << bits - 1
    zero = np.full((N, blocks), half, np.int64)
    given_zeros = None
    if zeros == "packed":
        zero = generator.integers(0, 1 << bits, (N, blocks))
        given_zeros = codec(f"nbit{bits}").pack((zero - half).astype(np.int8)).reshape(-1)
    elif zeros == "float":
        given_zeros = zero.astype(np.float32).reshape(-1)
    packed = codec(f"nbit{bits}").pack((digits - half).astype(np.int8)).reshape(N, blocks, -1)
    found = dequantize_blocks(packed, scales.reshape(-1), given_zeros, K, N, bits, block)
    expected = [
        [(digits[n, k] - zero[n, k // block]) * scales[n, k // block] for k in range(K)] for n in range(N)
    ]
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))
