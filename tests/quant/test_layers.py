"""What a fake-quantised layer is as a module."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hybridkit.errors import UsageError
from hybridkit.quant.binary import Binary
from hybridkit.quant.layers import QATConv2d, QATEmbedding, QATLinear, qat_layers, set_ramp
from hybridkit.quant.nbit import NBit
from hybridkit.quant.ternary import TernaryAbsmean, TernaryLearned


def test_adopting_keeps_the_object_its_parameters_and_its_state_names():
    linear = nn.Linear(5, 3)
    calls = []
    linear.register_forward_hook(lambda *_: calls.append(1))
    weight, bias = linear.weight, linear.bias
    adopted = QATLinear.adopt(linear, TernaryAbsmean(), name="ternary-absmean")
    assert adopted is linear
    assert isinstance(linear, nn.Linear)
    assert linear.weight is weight
    assert linear.bias is bias
    assert set(linear.state_dict()) == {"weight", "bias"}
    linear(torch.randn(2, 5))
    assert calls == [1]
    assert "quantizer=ternary-absmean, activations=int8" in repr(linear)


def test_releasing_gives_back_the_plain_layer():
    conv = nn.Conv2d(2, 3, 3)
    x = torch.randn(1, 2, 5, 5)
    before = conv(x)
    QATConv2d.adopt(conv, TernaryLearned()).release()
    assert type(conv) is nn.Conv2d
    assert set(conv.state_dict()) == {"weight", "bias"}
    assert torch.equal(conv(x), before)


def test_learned_parameters_are_parameters_of_the_layer():
    layer = QATLinear.adopt(nn.Linear(5, 3), TernaryLearned())
    assert set(layer.state_dict()) == {"weight", "bias", "quantizer_parameters.step"}
    other = QATLinear.adopt(nn.Linear(5, 3), TernaryLearned())
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(other(x), layer(x))


def test_only_the_very_class_is_adopted():
    class Mine(nn.Linear):
        pass

    with pytest.raises(UsageError, match="QATLinear is made from Linear, not Mine"):
        QATLinear.adopt(Mine(2, 2), Binary())


def test_eight_bits_hardly_change_the_function():
    torch.manual_seed(0)
    for layer, cls, x in (
        (nn.Linear(64, 32), QATLinear, torch.randn(8, 64)),
        (nn.Conv2d(8, 16, 3, padding=1), QATConv2d, torch.randn(2, 8, 6, 6)),
    ):
        before = layer(x)
        made = cls.adopt(copy.deepcopy(layer), NBit(NBit.Options(bits=8)), activations="float")
        assert (made(x) - before).norm() < 0.01 * before.norm()


def test_embedding_is_the_dequantised_row():
    embedding = nn.Embedding(11, 6, padding_idx=3)
    made = QATEmbedding.adopt(copy.deepcopy(embedding), TernaryAbsmean())
    tokens = torch.tensor([[1, 3, 10], [0, 1, 1]])
    assert torch.equal(made(tokens), made.quantized_weight().dequantize()[tokens])
    made(tokens).sum().backward()
    counts = torch.bincount(tokens.flatten(), minlength=11).float()
    counts[3] = 0  # the padding has no gradient
    assert torch.equal(made.weight.grad, counts[:, None].expand(11, 6))


def test_the_ramp_goes_from_full_precision_to_exactly_quantised():
    torch.manual_seed(0)
    linear, conv, embedding = nn.Linear(9, 4), nn.Conv2d(2, 3, 3), nn.Embedding(7, 9)
    for layer, cls, x in (
        (linear, QATLinear, torch.randn(5, 9)),
        (conv, QATConv2d, torch.randn(2, 2, 5, 5)),
        (embedding, QATEmbedding, torch.tensor([1, 2])),
    ):
        plain, full = copy.deepcopy(layer)(x), cls.adopt(layer, TernaryAbsmean())
        quantized = full(x)
        distances = []
        for value in (0.0, 0.25, 0.5, 0.75, 1.0):
            set_ramp(layer, value)
            distances.append((layer(x) - quantized).norm().item())
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] == 0
        set_ramp(layer, 0)
        torch.testing.assert_close(layer(x), plain)


def test_a_ramp_outside_its_range():
    with pytest.raises(UsageError, match="from 0 to 1"):
        set_ramp(nn.Linear(2, 2), 1.5)


def test_the_gradient_on_the_ramp_reaches_everything():
    layer = QATLinear.adopt(nn.Linear(9, 4), TernaryLearned())
    set_ramp(layer, 0.5)
    x = torch.randn(3, 9, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad.any()
    for parameter in layer.parameters():
        assert parameter.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_and_out_float32_between(dtype):
    layer = QATLinear.adopt(nn.Linear(200, 30).to(dtype), TernaryAbsmean())
    x = torch.randn(4, 200).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    wide = QATLinear.adopt(nn.Linear(200, 30), TernaryAbsmean())
    wide.load_state_dict(layer.state_dict())
    assert torch.equal(y, wide(x.float()).to(dtype))
    y.sum().backward()
    assert layer.weight.grad.dtype == dtype


def test_autocast_changes_nothing():
    layer, x = QATLinear.adopt(nn.Linear(300, 20), TernaryAbsmean()), torch.randn(4, 300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        y.sum().backward()
    assert torch.equal(y, layer(x))


def test_recomputation_gives_the_same_gradient():
    layer = QATLinear.adopt(nn.Linear(9, 9), TernaryLearned())
    x = torch.randn(3, 9, requires_grad=True)
    wanted = [x, *layer.parameters()]
    plain = torch.autograd.grad(layer(x).square().sum(), wanted)
    again = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), wanted)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


def test_layers_by_name_each_once():
    shared = QATLinear.adopt(nn.Linear(3, 3), Binary())
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(3, 3))
    assert qat_layers(model) == {"0": shared}
