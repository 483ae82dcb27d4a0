"""The layers' arithmetic against integers in NumPy, bit for bit, and its gradient against an obvious one."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.quant.layers import QATConv2d, QATLinear, qat_class
from hybridkit.quant.plan import make_quantizer
from hybridkit.quant.product import MatMul

EXACT = ["ternary-absmean", "ternary-mse", "ternary-learned", "binary", {"quantizer": "nbit", "bits": 4}]
GROUPED = {"quantizer": "nbit", "bits": 4, "group_size": 8}


def fake(layer, spec="ternary-absmean", activations="int8"):
    quantizer, name = make_quantizer(spec)
    return qat_class(layer).adopt(copy.deepcopy(layer), quantizer, activations=activations, name=name)


def integer_rows(x, axes):
    """int8 codes and scale over `axes`, in float32 as ONNX.md says, the codes as int64."""
    largest = np.abs(x).max(axis=axes, keepdims=True)
    scale = np.maximum(largest, np.float32(1e-5)) / np.float32(127)
    return np.clip(np.rint(x / scale), -127, 127).astype(np.int64), scale


@given(
    st.integers(1, 20),  # on some processors the larger shapes are multiplied as integers
    st.integers(1, 90),
    st.integers(1, 40),
    st.sampled_from(EXACT),
    st.booleans(),
    st.sampled_from([1e-7, 1.0, 3e4]),
    st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None)
def test_linear_int8_equals_integer_arithmetic(rows, K, N, spec, bias, size, seed):
    torch.manual_seed(seed)
    layer = fake(nn.Linear(K, N, bias=bias), spec)
    x = torch.randn(2, rows, K) * size
    quantized = layer.quantized_weight()
    codes, s_x = integer_rows(x.numpy(), -1)
    total = codes @ quantized.codes.numpy().astype(np.int64).T
    expected = total.astype(np.float32) * (s_x * quantized.scale.numpy())
    if bias:
        expected = expected + layer.bias.detach().numpy()
    y = layer(x)
    assert y.dtype == torch.float32
    assert np.array_equal(y.detach().numpy(), expected)
    with torch.no_grad():
        assert torch.equal(layer(x), y)


@given(
    st.sampled_from(EXACT),
    st.sampled_from([1, 2]),
    st.sampled_from([0, 1, "same"]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.sampled_from(["zeros", "reflect", "circular"]),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_conv2d_int8_equals_integer_arithmetic(spec, groups, padding, stride, dilation, mode, kernel, seed):
    torch.manual_seed(seed)
    stride = 1 if padding == "same" else stride
    conv = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups, padding_mode=mode)
    layer, x = fake(conv, spec), torch.randn(3, 4, 9, 8)
    quantized = layer.quantized_weight()
    codes, s_x = integer_rows(x.numpy(), (1, 2, 3))
    exact = copy.deepcopy(conv).double()  # sums of integers are exact in float64, and so are the pads
    exact.weight.data = quantized.codes.view(conv.weight.shape).double()
    exact.bias = None
    total = exact(torch.from_numpy(codes).double()).detach().numpy()
    expected = total.astype(np.float32) * (s_x * quantized.scale.numpy()[:, None, None])
    expected = expected + conv.bias.detach().numpy()[:, None, None]
    assert np.array_equal(layer(x).detach().numpy(), expected)
    assert torch.equal(layer(x[0]), layer(x[:1])[0])  # without a batch


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_conv1d_int8_equals_integer_arithmetic():
    torch.manual_seed(0)
    conv = nn.Conv1d(6, 4, 4, padding="same", groups=2)
    layer, x = fake(conv), torch.randn(2, 6, 11)
    quantized = layer.quantized_weight()
    codes, s_x = integer_rows(x.numpy(), (1, 2))
    exact = copy.deepcopy(conv).double()
    exact.weight.data, exact.bias = quantized.codes.view(conv.weight.shape).double(), None
    total = exact(torch.from_numpy(codes).double()).detach().numpy()
    expected = total.astype(np.float32) * (s_x * quantized.scale.numpy()[:, None])
    assert np.array_equal(layer(x).detach().numpy(), expected + conv.bias.detach().numpy()[:, None])


@pytest.mark.parametrize("spec", [*EXACT, GROUPED])
def test_float_mode_scales_the_output(spec):
    torch.manual_seed(0)
    linear, conv = nn.Linear(33, 7), nn.Conv2d(4, 6, 3, padding=1)
    for layer, x in ((linear, torch.randn(5, 33)), (conv, torch.randn(2, 4, 6, 5))):
        made = fake(layer, spec, "float")
        twin = copy.deepcopy(layer).double()
        twin.weight.data = made.quantized_weight().dequantize().double().view(layer.weight.shape)
        torch.testing.assert_close(made(x), twin(x.double()).float(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_groups_scale_the_weight(activations):
    torch.manual_seed(0)
    layer, x = fake(nn.Linear(37, 5), GROUPED, activations), torch.randn(4, 37)
    quantized = layer.quantized_weight()
    assert quantized.scale.shape == (5, 5)
    codes, s_x = integer_rows(x.numpy(), -1) if activations == "int8" else (x.numpy(), np.ones((4, 1)))
    expected = np.zeros((4, 5))
    for g in range(5):  # group by group, in float64
        part = slice(8 * g, 8 * g + 8)
        sums = codes[:, part].astype(float) @ quantized.codes[:, part].numpy().astype(float).T
        expected += sums * quantized.scale[:, g].double().numpy()
    expected = expected * s_x + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def obvious(layer, x):
    """The layer by plain autograd: dequantised weight and activations, each straight through."""
    quantized = layer.quantized_weight()
    fake_weight = layer.fake_weight(quantized)
    if layer.activations == "int8":
        axes = (-1,) if isinstance(layer, QATLinear) else tuple(range(1, x.dim()))
        s = x.detach().abs().amax(axes, keepdim=True).clamp(min=1e-5) / 127
        x = x + (torch.clamp(torch.round(x / s), -127, 127) * s - x).detach()
    if isinstance(layer, QATLinear):
        return F.linear(x, fake_weight, layer.bias)
    convolve = F.conv2d if isinstance(layer, QATConv2d) else F.conv1d
    return convolve(x, fake_weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("spec", ["ternary-absmean", "ternary-learned", "binary", GROUPED])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 7), (2, 3, 12)),
        (nn.Linear(24, 17), (3, 6, 24)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, padding=(2, 1), dilation=2, groups=2), (2, 4, 7, 6)),
    ],
)
def test_gradients_are_those_of_the_dequantised_product(layer, shape, spec, activations):
    torch.manual_seed(0)
    made = fake(layer, spec, activations)
    x = torch.randn(shape, requires_grad=True)
    wanted = [x, *made.parameters()]
    y, expected = made(x), obvious(made, x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, wanted, upstream), torch.autograd.grad(expected, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_int8_products_are_those_of_whole_numbers(rows, K, N, seed):
    generator = torch.Generator().manual_seed(seed)
    x, q = (torch.randint(-127, 128, (n, K), generator=generator, dtype=torch.int8) for n in (rows, N))
    expected = x.long() @ q.long().T
    for way in (x, x.t().contiguous().t(), x[None]):  # strides differ
        found = MatMul().multiply_int8(way, q)
        assert found is None or torch.equal(found.long().view_as(expected), expected)


def test_autocast_lowers_the_gradients_alone():
    torch.manual_seed(0)
    layer, x = fake(nn.Linear(32, 24)), torch.randn(20, 32, requires_grad=True)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, exact)
    upstream = torch.randn_like(y)
    wanted = [x, layer.weight]
    ours, theirs = (torch.autograd.grad(z, wanted, upstream) for z in (y, exact))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert 0 < float((a - b).norm() / b.norm()) < 2**-7  # the precision of bf16


def test_only_the_gradients_that_are_needed():
    layer = fake(nn.Linear(6, 3))
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 6, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    frozen = fake(nn.Conv2d(2, 3, 3))
    frozen(torch.randn(1, 2, 5, 5)).sum().backward()
    assert frozen.weight.grad is not None


def test_an_empty_batch():
    for layer, shape in ((nn.Linear(6, 3), (0, 6)), (nn.Conv1d(2, 3, 3), (0, 2, 5))):
        made, x = fake(layer), torch.zeros(shape, requires_grad=True)
        y = made(x)
        assert y.shape == layer(x).shape
        y.sum().backward()
        assert torch.equal(made.weight.grad, torch.zeros_like(made.weight))


def test_zeros_give_the_bias():
    layer = fake(nn.Linear(6, 3))
    assert torch.equal(layer(torch.zeros(2, 6)), layer.bias.detach().expand(2, 3))
