"""Groups for every quantizer: the same codes as group by group, in training, packed, and exported."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.packing.model import PackedModel
from hybridkit.quant.config import Channel, Group, QuantConfig, Tensor
from hybridkit.quant.convert import convert
from hybridkit.quant.groups import InGroups, with_granularity
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.nbit import NBit
from hybridkit.quant.plan import make_quantizer
from hybridkit.quant.post_training import quantize
from hybridkit.quant.prepare import prepare_qat_
from hybridkit.runtime.modules import load_packed

NAMES = ("ternary-absmean", "ternary-mse", "ternary-learned", "binary", "nbit")
matrices = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31)).map(
    lambda drawn: torch.randn(drawn[0], drawn[1], generator=torch.Generator().manual_seed(drawn[2]))
)


@given(st.sampled_from(NAMES), matrices, st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_groups_are_quantised_each_for_itself(name, weight, size):
    quantizer, inner = make_quantizer(name, granularity=Group(size))[0], make_quantizer(name)[0]
    found = quantizer.quantize(weight, **quantizer.parameters(weight))
    N, K = weight.shape
    assert found.group_size == size
    assert found.scale.shape == (N, -(-K // size))
    for n, g in itertools.product(range(N), range(found.scale.shape[1])):
        own = weight[n : n + 1, g * size : (g + 1) * size]
        expected = inner.quantize(own, **inner.parameters(own))
        assert torch.equal(found.codes[n, g * size : (g + 1) * size], expected.codes[0])
        torch.testing.assert_close(found.scale[n, g], expected.scale[0])


@given(st.sampled_from(["absmax", "mse"]), st.sampled_from([2, 4, 8]), matrices, st.integers(1, 50))
@settings(max_examples=80, deadline=None)
def test_groups_are_those_of_the_n_bit_quantizer(scale, bits, weight, size):
    own = NBit(NBit.Options(bits=bits, scale=scale, group_size=size)).quantize(weight)
    ours = InGroups(NBit(NBit.Options(bits=bits, scale=scale)), size).quantize(weight)
    assert torch.equal(own.codes, ours.codes)
    assert torch.equal(own.scale, ours.scale)


@given(st.sampled_from(NAMES), matrices)
@settings(max_examples=60, deadline=None)
def test_one_scale_for_a_weight_is_the_quantizers_own(name, weight):
    ours = make_quantizer(name, granularity=Tensor())[0]
    found = ours.quantize(weight, **ours.parameters(weight))
    registered = type(make_quantizer(name)[0])
    own = registered(registered.Options(granularity="tensor"))
    expected = own.quantize(weight, **own.parameters(weight))
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scale, expected.scale)
    assert found.group_size == 0


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 3)])
def test_empty_weights_and_groups_wider_than_a_row(shape):
    quantizer = make_quantizer("ternary-mse", granularity=Group(4))[0]
    quantized = quantizer.quantize(torch.zeros(shape))
    assert quantized.codes.shape == shape
    assert quantized.scale.shape == (shape[0], -(-shape[1] // 4))
    assert quantized.dequantize().shape == shape


def test_the_gradient_is_the_quantizers_own_in_each_group():
    weight = torch.randn(3, 11, generator=torch.Generator().manual_seed(0)).requires_grad_()
    quantizer, inner = (make_quantizer("ternary-learned", granularity=g)[0] for g in (Group(4), Channel()))
    parameters = {name: p.requires_grad_() for name, p in quantizer.parameters(weight.detach()).items()}
    assert {name: tuple(p.shape) for name, p in parameters.items()} == {"step": (6,), "step_rest": (3,)}
    fake = quantizer.fake_quantize(weight, quantizer.quantize(weight, **parameters), **parameters)
    weighting = torch.linspace(-1, 2, 33).view(3, 11)
    fake.mul(weighting).sum().backward()
    for columns, name in ((slice(0, 4), "step"), (slice(8, 11), "step_rest")):
        own = weight.detach()[:, columns].clone().requires_grad_()
        every = parameters[name].detach()
        step = (every.view(3, 2)[:, 0] if name == "step" else every).clone().requires_grad_()
        # LSQ scales a step's gradient by the number of its weights alone
        part = inner.fake_quantize(own, inner.quantize(own, step=step), step=step)
        part.mul(weighting[:, columns]).sum().backward()
        torch.testing.assert_close(weight.grad[:, columns], own.grad)
        grad = parameters[name].grad
        torch.testing.assert_close(grad.view(3, 2)[:, 0] if name == "step" else grad, step.grad)


class Network(nn.Module):
    """Every kind of layer, and widths that no group divides."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 10)
        self.line = nn.Conv1d(10, 6, 3, padding=1)
        self.plane = nn.Conv2d(1, 2, 3, padding=1)
        self.hidden = nn.Linear(6, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, tokens):
        x = self.line(self.embed(tokens).transpose(1, 2))
        x = self.plane(x[:, None]).sum(dim=1).transpose(1, 2)
        return self.head(self.hidden(x))


TOKENS = torch.arange(20).view(4, 5)


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("name", NAMES)
def test_what_trains_in_groups_is_what_runs_packed(tmp_path, name, activations):
    torch.manual_seed(0)
    how = QuantConfig(weights=name, granularity=Group(4), activations=activations, quantize_all=True)
    model = prepare_qat_(Network(), how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(TOKENS).square().mean().backward()
        optimizer.step()
    convert(model).save(tmp_path / "m")
    packed = PackedModel.load(tmp_path / "m")
    assert {layer.group_size for layer in packed.layers.values()} == {4}
    for layer_name, layer in qat_layers(model).items():
        quantized = layer.quantized_weight()
        assert np.array_equal(packed.layers[layer_name].unpack(), quantized.codes.numpy())
        assert np.array_equal(packed.layers[layer_name].scale, quantized.scale.numpy())
    with torch.no_grad():
        assert torch.equal(load_packed(Network(), packed)(TOKENS), model.eval()(TOKENS))


def test_smaller_groups_have_smaller_errors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 32), nn.Linear(32, 2))
    for name in ("ternary-mse", "binary", "nbit"):
        errors = [
            quantize(model, QuantConfig(weights=name, granularity=g)).layers[0].relative_error
            for g in ("group:16", "group:64", "channel", "tensor")
        ]
        assert errors == sorted(errors)
        assert errors[0] < errors[2]


def test_granularities_that_contradict_each_other():
    with pytest.raises(UsageError, match="group_size and granularity=group:4 contradict"):
        make_quantizer({"quantizer": "nbit", "group_size": 8, "granularity": "group:4"})
    with pytest.raises(UsageError, match="works in groups already"):
        with_granularity(NBit(NBit.Options(group_size=8)), Group(4)).quantize(torch.randn(2, 8))


def test_a_layer_may_have_a_granularity_of_its_own():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2))
    layers = {
        "1": {"quantizer": "binary", "granularity": Channel()},
        "2": {"quantizer": "nbit", "group_size": 4},
    }
    packed = quantize(model, QuantConfig(granularity="group:8", layers=layers)).packed
    assert {name: layer.group_size for name, layer in packed.layers.items()} == {"0": 8, "1": 0, "2": 4}
