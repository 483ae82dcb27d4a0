"""Quantising after the fact."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.packing.model import PackedModel
from hybridkit.quant.convert import convert
from hybridkit.quant.post_training import quantize, quantize_to_file
from hybridkit.quant.prepare import prepare_qat


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 30), nn.Linear(30, 3))


def test_errors_are_those_of_the_weights():
    model = network()
    report = quantize(model)
    assert [row.name for row in report.layers] == ["0", "2"]
    for row in report.layers:
        weight = model[int(row.name)].weight.detach().numpy().astype(float)
        kept = report.packed.layers[row.name].dequantize()
        error = np.linalg.norm(weight - kept) / np.linalg.norm(weight)
        assert row.relative_error == pytest.approx(error, rel=1e-5)
        assert row.zero_fraction == pytest.approx((kept == 0).mean())
        assert row.quantizer == "ternary-mse"
        assert row.shape == weight.shape
        assert row.bits == pytest.approx(1.585, abs=1e-3)
    assert report.sizes == report.packed.sizes()
    assert {layer.activations for layer in report.packed.layers.values()} == {"float"}


def test_more_bits_mean_smaller_errors():
    def worst(spec):
        return max(row.relative_error for row in quantize(network(), quantizer=spec).layers)

    errors = [
        worst(s) for s in ("binary", "ternary-mse", *({"quantizer": "nbit", "bits": b} for b in (2, 4, 8)))
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01
    assert worst("ternary-mse") <= worst("ternary-absmean")


def test_the_callers_model_is_not_changed():
    model = network()
    before, names = copy.deepcopy(model.state_dict()), list(dict(model.named_modules()))
    quantize(model, quantizer="ternary-learned", quantize_all=True)
    assert type(model[0]) is nn.Linear
    assert list(dict(model.named_modules())) == names
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_prepared_model_is_packed_as_it_trained():
    model = prepare_qat(network(), quantizer="binary")
    report = quantize(model, metadata={"a": 1})
    expected = convert(model, metadata={"a": 1})
    assert report.packed.layers.keys() == expected.layers.keys()
    for name, layer in expected.layers.items():
        assert np.array_equal(layer.codes, report.packed.layers[name].codes)
    assert report.packed.metadata == expected.metadata
    assert report.packed.metadata["a"] == 1
    assert [(x.name, x.reason) for x in report.left_alone] == [("3", "last Linear")]
    assert [row.quantizer for row in report.layers] == ["binary", "binary"]


def test_bits_within_a_budget_and_overrides_over_them():
    report = quantize(network(), target_bits=2.0, overrides={"2": {"quantizer": "nbit", "bits": 8}})
    rows = {row.name: row for row in report.layers}
    assert rows["2"].bits == 8
    assert rows["0"].bits <= 2
    budgeted = quantize(network(), target_bits=1.58, quantizer="ternary-absmean")
    assert {row.quantizer for row in budgeted.layers} <= {"ternary-absmean", "binary", "nbit"}
    total = sum(np.prod(r.shape) * r.bits for r in budgeted.layers)
    assert total <= 1.59 * sum(np.prod(r.shape) for r in budgeted.layers)


def test_a_budget_is_not_spent_on_another_quantizer():
    with pytest.raises(UsageError, match="'nbit' is not ternary"):
        quantize(network(), quantizer="nbit", target_bits=3)


def test_zero_weights_have_no_error():
    model = network()
    nn.init.zeros_(model[0].weight)
    assert quantize(model).layers[0].relative_error == 0


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_a_file_holds_the_same(tmp_path, compress):
    model, how = network(), {"quantizer": "nbit", "options": {"bits": 2}, "activations": "int8"}
    written = quantize_to_file(model, tmp_path / "m", metadata={"b": 2}, compress=compress, **how)
    report = quantize(model, metadata={"b": 2}, **how)
    assert written.layers == report.layers
    assert written.left_alone == report.left_alone
    assert written.sizes.file_bytes == (tmp_path / "m").stat().st_size
    loaded = PackedModel.load(tmp_path / "m")
    assert loaded.metadata == report.packed.metadata
    assert loaded.metadata["b"] == 2
    for name, layer in report.packed.layers.items():
        assert np.array_equal(loaded.layers[name].codes, layer.codes)
        assert loaded.layers[name].activations == "int8"


class WithHead(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantize_all", [True, False])
@pytest.mark.parametrize(
    ("embeddings", "codec", "error"), [(8, "nbit8", 0.01), ("8-tensor", "nbit8", 0.02), (4, "nbit4", 0.2)]
)
def test_embeddings_and_head_take_bits_of_their_own(tied, quantize_all, embeddings, codec, error):
    report = quantize(WithHead(tied), embeddings=embeddings, quantize_all=quantize_all)
    codecs = {name: layer.codec for name, layer in report.packed.layers.items()}
    rest = {"embed": codec} if tied else {"embed": codec, "head": codec}
    assert codecs == {"hidden": "two-bit"} | rest
    assert all(row.relative_error < error for row in report.layers if row.name != "hidden")
    one_step = len(np.unique(report.packed.layers["embed"].scale)) == 1
    assert one_step == (embeddings == "8-tensor")


def test_overrides_win_over_embeddings():
    report = quantize(WithHead(False), embeddings=8, overrides={"head": "binary"})
    assert {n: layer.codec for n, layer in report.packed.layers.items()} == {
        "embed": "nbit8",
        "hidden": "two-bit",
        "head": "one-bit",
    }
    with pytest.raises(UsageError, match="embeddings take 8, 4 or 8-tensor, not 3"):
        quantize(WithHead(False), embeddings=3)
