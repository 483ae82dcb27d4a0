"""Ternary quantizers against obvious twins, and the gradient of the learned step."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hybridkit.quant.groups import InGroups
from hybridkit.quant.protocol import codec_of
from hybridkit.quant.ternary import (
    TernaryAbsmean,
    TernaryLearned,
    TernaryMSE,
    TernarySparse,
    least_squares_ternary,
)

weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.floats(-3, 3, width=16),  # few distinct values: ties are common
).map(torch.from_numpy)


@given(weights, st.sampled_from(["channel", "tensor"]), st.sampled_from([0.5, 1.0, 1.7]))
@settings(max_examples=60, deadline=None)
def test_absmean_is_the_formula(weight, granularity, multiplier):
    options = TernaryAbsmean.Options(granularity=granularity, scale_multiplier=multiplier)
    quantized = TernaryAbsmean(options).quantize(weight)
    for n, row in enumerate(weight.double().numpy()):
        pool = row if granularity == "channel" else weight.double().numpy()
        scale = np.abs(pool).mean() * multiplier
        assert quantized.scale[n].item() == pytest.approx(scale, rel=1e-6, abs=1e-12)
        for value, code in zip(row, quantized.codes[n].tolist(), strict=True):
            ratio = abs(value) / scale if scale else 0.0
            if abs(ratio - 0.5) > 1e-6:
                assert code == (np.sign(value) if ratio > 0.5 else 0)


def best_ternary_error(row):
    """The least squared error over all ternary codes, each with its best scale: obvious and slow."""
    best = float((row**2).sum())
    for codes in itertools.product((-1, 0, 1), repeat=len(row)):
        q = np.array(codes, float)
        if q.any() and (along := row @ q) > 0:
            best = min(best, float((row**2).sum() - along**2 / (q @ q)))
    return best


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 3), st.integers(1, 6)), elements=st.floats(-3, 3, width=16)
    )
)
@settings(max_examples=40, deadline=None)
def test_mse_has_the_least_error_of_all_codes_and_scales(rows):
    quantized = TernaryMSE().quantize(torch.from_numpy(rows))
    errors = ((quantized.dequantize().double().numpy() - rows) ** 2).sum(axis=1)
    for error, row in zip(errors, rows.astype(float), strict=True):
        assert error == pytest.approx(best_ternary_error(row), rel=1e-5, abs=1e-6)


def best_sparse_error(row):
    """The least squared error over all codes with one zero in each whole four, and none behind them."""
    best = math.inf
    for codes in itertools.product((-1, 0, 1), repeat=len(row)):
        fours = [codes[start : start + 4] for start in range(0, len(row), 4)]
        if all(four.count(0) == (1 if len(four) == 4 else 0) for four in fours):
            q = np.array(codes, float)
            best = min(best, float((row**2).sum() - max(row @ q, 0) ** 2 / (q @ q)))
    return best


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 3), st.integers(1, 8)), elements=st.floats(-3, 3, width=16)
    )
)
@settings(max_examples=40, deadline=None)
def test_sparse_has_the_least_error_of_all_codes_of_its_pattern(rows):
    for array in (rows, torch.from_numpy(rows)):
        quantized = TernarySparse().quantize(array)
        errors = ((np.asarray(quantized.dequantize(), float) - rows) ** 2).sum(axis=1)
        for error, row in zip(errors, rows.astype(float), strict=True):
            assert error == pytest.approx(best_sparse_error(row), rel=1e-5, abs=1e-6)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 1000), st.sampled_from([0, 4, 8, 16, 5]))
@settings(max_examples=60, deadline=None)
def test_sparse_codes_fit_the_codec_that_is_theirs(N, K, seed, size):
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    quantizer = InGroups(TernarySparse(), size) if size else TernarySparse()
    codes = quantizer.quantize(weight).codes.numpy()
    stored = codec_of(quantizer)
    assert stored.name == ("two-bit" if size == 5 else "sparse34")  # a group of 5 cuts fours
    assert np.array_equal(stored.unpack(stored.pack(codes), K), codes)


@given(weights)
@settings(max_examples=60, deadline=None)
def test_the_best_threshold_is_half_the_scale(weight):
    codes, scale = least_squares_ternary(weight)
    margin = (weight.abs() - scale[:, None] / 2) * torch.where(codes != 0, 1, -1)
    assert (margin >= -1e-5 * (1 + scale[:, None])).all()
    assert torch.equal(torch.sign(weight) * (codes != 0), codes.float())


def test_mse_beats_absmean_on_a_long_row_with_outliers():
    weight = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    weight[:, :5] *= 100

    def error(quantizer):
        return (quantizer.quantize(weight).dequantize() - weight).norm()

    assert error(TernaryMSE()) < error(TernaryAbsmean())


@pytest.mark.parametrize("quantizer_class", [TernaryAbsmean, TernaryMSE, TernaryLearned])
def test_one_scale_for_the_whole_tensor(quantizer_class):
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [[1.0], [2], [3], [4]]
    )
    quantizer = quantizer_class(quantizer_class.Options(granularity="tensor"))
    quantized = quantizer.quantize(weight, **quantizer.parameters(weight))
    assert quantized.scale.shape == (4,)
    assert quantized.scale.unique().numel() == 1


@pytest.mark.parametrize("quantizer_class", [TernaryAbsmean, TernaryMSE, TernaryLearned])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_weights(quantizer_class, shape):
    quantizer, weight = quantizer_class(), torch.zeros(shape)
    quantized = quantizer.quantize(weight, **quantizer.parameters(weight))
    assert quantized.codes.shape == shape
    assert quantized.scale.shape == shape[:1]
    assert torch.isfinite(quantized.scale).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantizer_class", [TernaryAbsmean, TernaryMSE, TernaryLearned])
def test_half_precision_weights_are_computed_in_float32(quantizer_class, dtype):
    weight = torch.randn(3, 3000, generator=torch.Generator().manual_seed(0)).to(dtype)
    quantizer = quantizer_class()
    ours = quantizer.quantize(weight, **quantizer.parameters(weight))
    wide = quantizer.quantize(weight.float(), **quantizer.parameters(weight.float()))
    assert torch.equal(ours.codes, wide.codes)
    assert torch.equal(ours.scale, wide.scale)


def test_straight_through_is_the_identity():
    weight = torch.randn(3, 4, requires_grad=True)
    upstream = torch.randn(3, 4)
    for quantizer in (TernaryAbsmean(), TernaryMSE()):
        (given,) = torch.autograd.grad(
            quantizer.fake_quantize(weight, quantizer.quantize(weight)), weight, upstream
        )
        assert torch.equal(given, upstream)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_learned_step_has_the_gradient_of_lsq(granularity):
    quantizer = TernaryLearned(TernaryLearned.Options(granularity=granularity))
    weight = torch.tensor([[0.2, -0.7, 1.2, -1.6, 3.0], [0.0, 0.4, 0.6, -1.4, -9.0]], requires_grad=True)
    step = torch.ones(2 if granularity == "channel" else 1, requires_grad=True)
    upstream = torch.arange(10.0).reshape(2, 5) - 3
    fake = quantizer.fake_quantize(weight, quantizer.quantize(weight, step=step), step=step)
    to_weight, to_step = torch.autograd.grad(fake, (weight, step), upstream)
    slopes = torch.zeros(2, 5)  # equation 3 of LSQ, one weight at a time
    for n, k in itertools.product(range(2), range(5)):
        w, g = weight[n, k].item(), upstream[n, k].item()
        code = max(-1, min(1, round(w)))
        slopes[n, k] = code - w if abs(w) <= 1 else code
        assert to_weight[n, k].item() == (g if abs(w) <= 1.5 else 0)
    expected = (upstream * slopes).sum(dim=1)
    if granularity == "channel":
        torch.testing.assert_close(to_step, expected / math.sqrt(5))
    else:
        torch.testing.assert_close(to_step, expected.sum().reshape(1) / math.sqrt(10))


def test_a_learned_step_nearly_finds_the_least_error():
    weight = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    quantizer = TernaryLearned()
    step = torch.full((3,), 0.3, requires_grad=True)

    def error(step):
        return (quantizer.quantize(weight, step=step).dequantize() - weight).norm().item()

    least = error(least_squares_ternary(weight)[1])
    assert error(step) > 1.5 * least
    optimizer = torch.optim.Adam([step], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        fake = quantizer.fake_quantize(weight, quantizer.quantize(weight, step=step), step=step)
        (fake - weight).square().sum().backward()
        optimizer.step()
    assert error(step) < 1.02 * least


def test_a_step_that_fell_below_zero_can_come_back():
    weight = torch.ones(1, 4)
    step = torch.tensor([-0.1], requires_grad=True)
    optimizer = torch.optim.SGD([step], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        quantizer = TernaryLearned()
        fake = quantizer.fake_quantize(weight, quantizer.quantize(weight, step=step), step=step)
        assert torch.isfinite(fake).all()
        (fake - weight).square().sum().backward()
        optimizer.step()
    assert step.item() == pytest.approx(1, abs=0.1)


def test_a_row_of_zeros_gets_a_step_it_can_learn_from():
    step = TernaryLearned().parameters(torch.zeros(2, 16))["step"]
    assert torch.equal(step, torch.full((2,), 0.25))
