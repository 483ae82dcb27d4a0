"""Quantising weights that no network holds, a layer at a time, and quantizers that see calibration data."""

import json
import math
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.model import PackedModel
from hybridkit.quant.checkpoint import open_tensors
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.kinds import describe
from hybridkit.quant.nbit import NBit
from hybridkit.quant.post_training import quantize, quantize_to_file
from hybridkit.quant.protocol import QuantizedTensor, straight_through
from hybridkit.quant.statistics import layer_statistics
from hybridkit.runtime.modules import load_packed

INDEX = "model.safetensors.index.json"


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 30), nn.Linear(30, 3))


def shards(folder, state, parts=2):
    """A sharded checkpoint, as large models have it."""
    names = sorted(state)
    weight_map = {}
    for i in range(parts):
        file = f"model-{i}.safetensors"
        save_file({name: state[name] for name in names[i::parts]}, folder / file)
        weight_map |= dict.fromkeys(names[i::parts], file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def same(one: PackedModel, other: PackedModel):
    assert one.layers.keys() == other.layers.keys()
    assert one.tensors.keys() == other.tensors.keys()
    for name, layer in one.layers.items():
        assert layer.spec == other.layers[name].spec
        assert np.array_equal(layer.codes, other.layers[name].codes)
        assert np.array_equal(layer.scale, other.layers[name].scale)
    for name, tensor in one.tensors.items():
        assert np.array_equal(tensor, other.tensors[name])


@pytest.mark.parametrize(
    "how", [{}, {"target_bits": 3}, {"quantizer": "ternary-learned", "quantize_all": True}]
)
def test_a_checkpoint_needs_no_network(tmp_path, how):
    model = network()
    expected = quantize(model, **how)
    save_file(model.state_dict(), tmp_path / "one.safetensors")
    (tmp_path / "sharded").mkdir()
    shards(tmp_path / "sharded", model.state_dict())
    for source in (
        model.state_dict(),
        open_tensors(tmp_path / "one.safetensors"),
        open_tensors(tmp_path / "sharded" / INDEX),
    ):
        found = quantize(source, **how)
        same(found.packed, expected.packed)
        assert found.layers == expected.layers
        assert found.left_alone == expected.left_alone
    x = torch.randn(2, 20)
    assert load_packed(network(), found.packed)(x).shape == (2, 3)


def test_the_layers_of_an_empty_network_say_what_a_checkpoint_holds(tmp_path):
    model = network()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with torch.device("meta"):
        layers = describe(network())
    written = quantize_to_file(open_tensors(tmp_path / "w.safetensors"), tmp_path / "m", layers=layers)
    same(PackedModel.load(tmp_path / "m"), quantize(model).packed)
    assert [row.name for row in written.layers] == ["0", "2"]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.norm = nn.BatchNorm1d(6)
        self.up = nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("missing", ["embed.weight", "head.weight", None])
@pytest.mark.parametrize("quantize_all", [True, False])
def test_a_network_on_the_meta_device_and_its_weights(tmp_path, missing, quantize_all):
    torch.manual_seed(0)
    model = Tied()
    expected = quantize(model, quantize_all=quantize_all)
    state = {name: t.clone() for name, t in model.state_dict().items() if name != missing}
    save_file(state, tmp_path / "w.safetensors")
    with torch.device("meta"):
        empty = Tied()
        empty.head.weight = empty.embed.weight
    how = {"quantize_all": quantize_all, "weights": open_tensors(tmp_path / "w.safetensors")}
    found = quantize(empty, **how)
    same(found.packed, expected.packed)
    assert found.packed.tied == expected.packed.tied
    assert found.layers == expected.layers
    del state["up.bias"]
    with pytest.raises(UsageError, match=r"lack 'up\.bias'"):
        quantize(empty, weights=state)
    with pytest.raises(UsageError, match=r"'up\.bias' among the weights is \[5\], the network.s is \[6\]"):
        quantize(empty, weights=state | {"up.bias": torch.zeros(5)})


class Reading(Mapping):
    """Tensors that are made when they are asked for."""

    def __init__(self, count, width):
        self.names, self.width, self.reads = [f"{i}.weight" for i in range(count)], width, []

    def __getitem__(self, name):
        self.reads.append(name)
        generator = torch.Generator().manual_seed(self.names.index(name))
        return torch.randn(self.width, self.width, generator=generator)

    def meta(self, name):
        return torch.empty(self.width, self.width, device="meta")

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


def test_only_the_largest_layer_is_in_memory(tmp_path):
    peaks = []
    for count in (1, 1, 12):  # the first run also pays for what is made once
        weights = Reading(count, 256)
        tracemalloc.start()  # sees NumPy's memory: codes, packed bytes, scales
        quantize_to_file(weights, tmp_path / "m", QuantConfig(quantize_all=True))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sorted(set(weights.reads)) == sorted(weights.names)
    packed_layer = 256 * 256 // 4
    assert peaks[2] < peaks[1] + 4 * packed_layer


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "there is no such file"),
        (lambda p: p.write_bytes(b"12345678{}"), "not a safetensors file"),
        (lambda p: p.mkdir(), "not a safetensors file"),
    ],
)
def test_files_that_are_none(tmp_path, write, message):
    path = tmp_path / "w.safetensors"
    write(path)
    with pytest.raises(FileError, match=message) as caught:
        open_tensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {"a": "../../etc/passwd"}}',
        '{"weight_map": {"a": "/x.safetensors"}}',
        '{"weight_map": {"a": "b/../../x.safetensors"}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "x\\u001b[31m\\n.safetensors\\u0000"}}',
    ],
)
def test_an_index_names_files_beside_it(tmp_path, index):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(FileError) as caught:
        open_tensors(tmp_path / INDEX)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_an_index_that_names_what_is_not_there(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"b": "x.safetensors"}}))
    with pytest.raises(FileError, match="holds no tensor 'b'"):
        open_tensors(tmp_path / INDEX)


class ErrorMoving:
    """Rounds column by column and moves what each column lost to those after it (GPTQ, arXiv 2210.17323)."""

    takes_statistics = True

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        bits: int = 2

    def __init__(self, options=None):
        self.plain = NBit(NBit.Options(bits=(options or self.Options()).bits))
        self.levels, self.bits = self.plain.levels, self.plain.bits

    def parameters(self, weight):
        return {}

    def quantize(self, weight, statistics=None):
        rounded = self.plain.quantize(weight)
        if statistics is None:
            return rounded
        gram = statistics.gram.double()
        gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
        upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
        left, codes, scale = weight.double().clone(), torch.empty_like(rounded.codes), rounded.scale.double()
        for k in range(weight.shape[1]):
            column = torch.clamp(torch.round(left[:, k] / scale), self.levels[0], self.levels[-1])
            codes[:, k] = column.to(torch.int8)
            error = (left[:, k] - column * scale) / upper[k, k]
            left[:, k:] -= error[:, None] * upper[k, k:]
        return QuantizedTensor(codes, rounded.scale)

    def fake_quantize(self, weight, quantized):
        return straight_through(weight, quantized)


def correlated(samples=400):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 4, generator=generator) @ torch.randn(4, 20, generator=generator)


def test_a_quantizer_that_moves_error_between_columns_beats_rounding():
    model, x = network().eval(), correlated()
    how = QuantConfig(weights=ErrorMoving(), activations="float")
    plain = QuantConfig(weights={"quantizer": "nbit", "bits": 2}, activations="float")

    def error(config):
        packed = quantize(model, config, example_inputs=(x,)).packed
        first = torch.from_numpy(packed.layers["0"].dequantize())
        exact = x @ model[0].weight.detach().T
        return float((x @ first.T - exact).square().sum() / exact.square().sum())

    assert error(how) < 0.5 * error(plain)
    # without inputs it rounds
    same(
        quantize(model, how).packed,
        quantize(model, QuantConfig(weights=ErrorMoving(), activations="float")).packed,
    )


def test_statistics_may_come_from_elsewhere():
    model, x = network().eval(), correlated()
    how = QuantConfig(weights=ErrorMoving(), activations="float")
    asked = []

    def statistics(name):
        asked.append(name)
        return layer_statistics(model, (x,), name)

    found = quantize(model.state_dict(), how, statistics=statistics)
    assert asked == ["0", "2"]
    same(found.packed, quantize(model, how, example_inputs=(x,)).packed)


def test_such_a_quantizer_needs_whole_rows():
    with pytest.raises(UsageError, match="ErrorMoving looks at whole rows"):
        quantize(network(), QuantConfig(weights=ErrorMoving(), granularity="group:4"))


def test_statistics_are_the_moments_of_what_meets_a_row():
    torch.manual_seed(0)
    line = nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, padding_mode="reflect", bias=False)
    plane = nn.Conv2d(3, 5, (2, 3), padding="same", bias=False)
    linear = nn.Linear(7, 2, bias=False)
    for layer, x in (
        (line, torch.randn(3, 4, 11)),
        (plane, torch.randn(2, 3, 5, 6)),
        (linear, torch.randn(2, 4, 7)),
    ):
        found = layer_statistics(nn.Sequential(layer), (x,), "0")
        matrix = layer.weight.detach().flatten(1)
        # one channel per group sees the energy of its outputs, which the moments give
        rows = matrix.view(getattr(layer, "groups", 1), -1, matrix.shape[1])[:, 0]
        with torch.no_grad():
            layer.weight.copy_(rows[:1].expand(len(matrix), -1).reshape(layer.weight.shape))
            outputs = layer(x)
        places = outputs.numel() // len(matrix) * getattr(layer, "groups", 1)
        assert found.count == places
        energy = float(rows[0] @ found.gram @ rows[0])
        assert energy == pytest.approx(float(outputs.square().mean()), rel=1e-4)
        assert found.gram.shape == (matrix.shape[1],) * 2


def test_no_statistics_where_nothing_ran():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3))
    assert layer_statistics(model, (torch.tensor([1]),), "0") is None
    assert layer_statistics(model, None, "1") is None
    assert math.isfinite(layer_statistics(model, (torch.tensor([1]),), "1").gram.sum())
