"""Layers are found by what they are: subclasses, transformers' Conv1D, shared weights, names and shapes."""

import copy
import itertools

import pytest
import torch
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert
from hybridkit.quant.kinds import describe, describe_weights, kind_of
from hybridkit.quant.layers import QATLayer, QATLinear, qat_class, qat_layers
from hybridkit.quant.plan import select
from hybridkit.quant.post_training import quantize
from hybridkit.quant.prepare import full_precision_copy, prepare_qat_, prepared
from hybridkit.runtime.modules import PackedLinear, load_packed

ALL = QuantConfig(quantize_all=True)


class Conv1D(nn.Module):
    """Shaped like the one of transformers: a linear layer whose weight is [inputs, outputs]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.1)
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        size_out = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


def conv1d_classes():
    yield Conv1D
    try:
        from transformers.pytorch_utils import Conv1D as Theirs
    except ImportError:
        return
    yield Theirs


class Named(nn.Linear):
    """Adds nothing to the forward."""

    def describe(self):
        return f"{self.in_features} to {self.out_features}"


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight + 1, bias)


class Called(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) + 1


def test_kinds():
    assert kind_of(nn.Linear(2, 2)) == kind_of(Named(2, 2)) == kind_of(Conv1D(2, 3)) == "linear"
    assert kind_of(nn.Conv2d(1, 1, 1)) == "conv2d"
    assert [kind_of(m) for m in (Doubled(2, 2), Shifted(1, 1, 1), Called(2, 2), nn.ReLU())] == [None] * 4
    assert kind_of(nn.Conv3d(1, 1, 1)) is kind_of(nn.ConvTranspose1d(1, 1, 1)) is None
    with pytest.raises(UsageError, match="Doubled has a forward of its own"):
        qat_class(Doubled(2, 2))


class TensorScaledWordEmbedding(nn.Embedding):
    def __init__(self, *size):
        super().__init__(*size)
        self.embed_scale = nn.Buffer(torch.tensor(3.0), persistent=False)

    def forward(self, input_ids):
        return super().forward(input_ids) * self.embed_scale.to(self.weight.dtype)


class NumberScaledWordEmbedding(nn.Embedding):
    embed_scale = 0.5

    def forward(self, input_ids):
        return super().forward(input_ids) * self.embed_scale


class ShiftedScaledWordEmbedding(NumberScaledWordEmbedding):
    def forward(self, input_ids):
        return super().forward(input_ids + 1)


@pytest.mark.parametrize("kind", [TensorScaledWordEmbedding, NumberScaledWordEmbedding])
def test_scaled_embeddings_stay_scaled(kind):
    torch.manual_seed(0)
    layer, ids = kind(6, 8), torch.tensor([[0, 5], [2, 2]])
    factor = float(layer.embed_scale)
    model = prepare_qat_(nn.Sequential(layer), quantizer="ternary-absmean", quantize_all=True)
    rows = layer.quantized_weight().dequantize()[ids] * factor
    assert isinstance(layer, kind)
    found = model(ids)
    torch.testing.assert_close(found.detach(), rows)
    found.sum().backward()
    assert layer.weight.grad[2].tolist() == [2 * factor] * 8
    torch.testing.assert_close(load_packed(nn.Sequential(kind(6, 8)), convert(model))(ids), rows)
    layer.release()
    torch.testing.assert_close(model(ids), layer.weight[ids] * factor)


def test_an_embedding_that_does_more_is_left_alone():
    assert kind_of(ShiftedScaledWordEmbedding(6, 8)) is None


def test_a_subclass_stays_one_of_its_kind():
    layer = Named(6, 4)
    model = prepare_qat_(nn.Sequential(layer, nn.Linear(4, 2)))
    assert isinstance(layer, QATLinear)
    assert isinstance(layer, Named)
    assert layer.describe() == "6 to 4"
    assert type(layer) is qat_class(Named(1, 1))
    x = torch.randn(3, 6)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), model(x))
    assert type(full_precision_copy(model)[0]) is Named
    with torch.no_grad():
        assert torch.equal(
            load_packed(nn.Sequential(Named(6, 4), nn.Linear(4, 2)), convert(model))(x), model(x)
        )


@pytest.mark.parametrize("cls", list(conv1d_classes()))
@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("granularity", ["channel", "group:4"])
def test_a_layer_that_stores_its_weight_transposed(cls, activations, granularity):
    torch.manual_seed(0)
    model = nn.Sequential(cls(8, 6), nn.ReLU(), cls(5, 8), nn.Linear(5, 2))
    how = QuantConfig(weights="ternary-learned", activations=activations, granularity=granularity)
    afterwards = quantize(model, how)
    linear = nn.Linear(6, 8)
    with torch.no_grad():
        linear.weight.copy_(model[0].weight.t())
    expected = quantize(nn.Sequential(linear, nn.Linear(8, 2)), how).packed.layers["0"]
    found = afterwards.packed.layers["0"]
    assert (found.kind, found.shape, found.weight_name) == ("linear", (8, 6), "0.weight")
    assert (found.codes == expected.codes).all()
    assert (found.scale == expected.scale).all()
    plain = copy.deepcopy(model)
    prepare_qat_(model, how)
    assert isinstance(model[0], QATLayer)
    assert model[0].weight.shape == (6, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(7, 6)
    model(x).square().sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    optimizer.step()
    packed = load_packed(plain, convert(model))
    assert isinstance(packed[0], PackedLinear)
    with torch.no_grad():
        assert torch.equal(packed(x), model.eval()(x))


class Shared(nn.Module):
    """Two Linear layers of one weight, and a head tied to the embedding through a plain parameter, too."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.up, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again.weight = self.up.weight
        self.rnn = nn.GRU(6, 6, batch_first=True)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.table = self.embed.weight

    def forward(self, tokens):
        return self.head(self.again(self.up(self.rnn(self.embed(tokens))[0]))) + self.table.sum()


def test_shared_weights_and_what_is_left_alone():
    model = Shared()
    report = quantize(model, ALL)
    assert set(report.packed.layers) == {"up"}
    assert report.packed.tied["again.weight"] == "up.weight"
    left = {row.name: row.reason for row in report.left_alone}
    assert left == {
        "embed": "shares its weight with table, which cannot be quantised",
        "head": "shares its weight with table, which cannot be quantised",
        "table": "a parameter of Shared, which is no Linear, Conv1d, Conv2d or Embedding",
        "rnn.weight_ih_l0": "a parameter of GRU, which is no Linear, Conv1d, Conv2d or Embedding",
        "rnn.weight_hh_l0": "a parameter of GRU, which is no Linear, Conv1d, Conv2d or Embedding",
    }
    tokens = torch.tensor([[1, 2, 8]])
    assert load_packed(model, report.packed)(tokens).shape == (1, 3, 9)
    prepare_qat_(model, ALL)
    assert prepared(model).left_alone == report.left_alone
    assert set(qat_layers(model)) == {"up", "again"}


def test_a_weight_that_is_read_both_ways_is_left_alone():
    model = nn.Sequential(Conv1D(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    plans = select(describe(model), ALL)
    assert [plan.reason for plan in plans] == [
        "shares its weight with a layer that reads it transposed"
    ] * 2 + [""]


def test_a_network_without_memory_is_described_alike():
    with torch.device("meta"):
        empty = Shared()
    assert describe(empty) == describe(Shared())


def test_names_and_shapes_alone():
    shapes = {
        "lm_head.weight": (50, 8),
        "model.embed_tokens.weight": (50, 8),
        "model.layers.10.q_proj.weight": (8, 8),
        "model.layers.2.q_proj.weight": (8, 8),
        "model.layers.2.q_proj.bias": (8,),
        "model.norm.weight": (8,),
        "stem.weight": (8, 3, 4, 4),
        "line.weight": (8, 3, 4),
        "A_log": (8, 8),
    }
    layers = describe_weights(shapes, {"line": "conv1d"})
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("A_log", ""),
        ("line", "conv1d"),
        ("model.embed_tokens", "embedding"),
        ("model.layers.2.q_proj", "linear"),
        ("model.layers.10.q_proj", "linear"),
        ("stem", "conv2d"),
        ("lm_head", "linear"),
    ]
    left = {plan.name: plan.reason for plan in select(layers, QuantConfig()) if plan.quantizer is None}
    assert left == {
        "A_log": "a tensor that is not called weight",
        "model.embed_tokens": "embedding",
        "lm_head": "last Linear",
    }


def test_selection_needs_no_network():
    layers = describe_weights({f"{i}.weight": (4, 4) for i in range(12)})
    ran = [f"{i}" for i in (11, 3, 5)]
    plans = select(layers, QuantConfig(layers={"7": "binary"}), ran)
    assert {p.name: p.reason for p in plans if not p.quantizer} == {"5": "last Linear"}
    assert [p.name for p in plans] == [str(i) for i in range(12)]
    names = {p.name: p.quantizer_name for p in plans if p.quantizer}
    assert [n for n, _ in itertools.groupby(sorted(names.values()))] == ["binary", "ternary-absmean"]
