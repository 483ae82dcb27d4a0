"""The 1-bit quantizer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.quant.binary import Binary


@given(st.integers(0, 6), st.integers(0, 9), st.integers(0, 2**31), st.sampled_from(["channel", "tensor"]))
@settings(max_examples=40, deadline=None)
def test_is_sign_times_mean_magnitude(N, K, seed, granularity):
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    quantized = Binary(Binary.Options(granularity=granularity)).quantize(weight)
    for n in range(N):
        values = weight[n] if granularity == "channel" else weight
        mean = sum(abs(v) for v in values.flatten().tolist()) / max(values.numel(), 1)
        assert quantized.scale[n].item() == pytest.approx(mean, rel=1e-5)
        assert quantized.codes[n].tolist() == [1 if v >= 0 else -1 for v in weight[n].tolist()]


def test_zero_is_positive_and_has_no_size():
    quantized = Binary().quantize(torch.tensor([[0.0, -0.0], [0.0, -2.0]]))
    assert quantized.codes.tolist() == [[1, 1], [1, -1]]
    assert quantized.scale.tolist() == [0, 1]


def test_the_scale_is_the_best_one_for_these_codes():
    weight = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    quantized = Binary().quantize(weight)
    error = (quantized.dequantize() - weight).norm()
    for factor in (0.97, 1.03):
        assert (quantized.dequantize() * factor - weight).norm() > error


def test_the_gradient_is_not_clipped():
    weight = torch.tensor([[-50.0, 0.001, 3.0]], requires_grad=True)
    fake = Binary().fake_quantize(weight, Binary().quantize(weight))
    (gradient,) = torch.autograd.grad(fake.sum(), weight)
    assert torch.equal(gradient, torch.ones(1, 3))
