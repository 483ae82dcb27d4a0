"""n-bit quantisation: codes, groups and the search for the clip."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import UsageError
from hybridkit.quant.nbit import NBit, clips, narrowed

# rows, columns, bits, columns of a group, how the scale is found, seed
searches = given(
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([0, 1, 7, 16]),
    st.sampled_from(["mse", "absmax"]),
    st.integers(0, 2**31),
)


def make(**options):
    return NBit(NBit.Options(**options))


def extremes(bits):
    return (-3, 2) if bits == 3 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def reference(row, bits, scale_rule):
    """One row or group, one weight and one clip at a time, in float64."""
    low, high = extremes(bits)
    widest = max(abs(v) for v in row) / high

    def error(scale):
        codes = [max(low, min(high, round(v / scale))) if scale else 0 for v in row]
        return sum((c * scale - v) ** 2 for c, v in zip(codes, row, strict=True))

    if scale_rule == "absmax" or bits == 8:
        return error(widest)
    return min(error(widest * clip) for clip in clips(bits, (low, high)))


@searches
@settings(max_examples=60, deadline=None)
def test_equals_the_obvious_search(N, K, bits, group_size, scale, seed):
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    quantized = make(bits=bits, group_size=group_size, scale=scale).quantize(weight)
    assert quantized.codes.shape == (N, K)
    assert quantized.scale.shape == ((N, -(-K // group_size)) if group_size else (N,))
    low, high = extremes(bits)
    assert low <= quantized.codes.min()
    assert quantized.codes.max() <= high
    error = (quantized.dequantize() - weight).double().square()
    for n in range(N):
        row = weight[n].tolist()
        size = group_size or K
        expected = sum(reference(row[i : i + size], bits, scale) for i in range(0, K, size))
        assert error[n].sum().item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_longer_tail_on_either_side_is_as_good(bits):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).exp()  # one tail
    errors = [make(bits=bits).quantize(w).dequantize() - w for w in (weight, -weight)]
    assert torch.equal(errors[0], -errors[1])
    assert make(bits=bits).quantize(weight).scale.min() < 0  # the longer side is the negative one


@given(st.sampled_from([2, 3, 4, 8]), st.booleans(), st.floats(1e-3, 1e3), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_what_is_on_levels_already_stays(bits, mirrored, unit, seed):
    low, high = extremes(bits)
    codes = torch.randint(low, high + 1, (3, 20), generator=torch.Generator().manual_seed(seed))
    codes[:, 0] = high if bits == 8 else low  # a scale is known by its largest code
    weight = (-codes if mirrored and bits < 8 else codes) * unit
    if bits == 8:
        weight = weight.clamp(min=-high * unit)
    assert torch.allclose(make(bits=bits).quantize(weight).dequantize(), weight, rtol=1e-5)


def test_more_bits_and_smaller_groups_mean_less_error():
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))

    def error(**options):
        return (make(**options).quantize(weight).dequantize() - weight).norm().item()

    assert error(bits=8) < error(bits=4) / 8 < error(bits=2) / 16
    assert error(bits=4, group_size=16) < error(bits=4, group_size=64) < error(bits=4)
    assert error(bits=2, scale="mse") < 0.6 * error(bits=2, scale="absmax")


def test_eight_bits_keep_every_weight_within_half_a_step():
    weight = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    quantized = make(bits=8).quantize(weight)
    assert ((quantized.dequantize() - weight).abs() <= quantized.scale[:, None] * 0.5001).all()


def test_one_scale_for_the_whole_tensor():
    weight = torch.randn(4, 6) * torch.tensor([[1.0], [2], [3], [4]])
    scale = make(granularity="tensor", scale="absmax").quantize(weight).scale
    assert torch.allclose(scale, weight.abs().max() / 7)


@pytest.mark.parametrize("options", [{}, {"group_size": 4}, {"granularity": "tensor"}])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty_weights(options, shape):
    quantized = make(**options).quantize(torch.zeros(shape))
    assert quantized.codes.shape == shape
    assert quantized.dequantize().shape == shape


def test_codes_fit_an_unsigned_field_with_the_middle_as_zero_point():
    for bits in (2, 4, 8):
        levels = make(bits=bits).levels
        assert [level + 2 ** (bits - 1) for level in levels] == list(range(2**bits))


def test_groups_and_one_scale_per_tensor_contradict():
    with pytest.raises(UsageError, match="contradict"):
        make(group_size=32, granularity="tensor")


def reference_with_offset(row, bits, scale_rule):
    """The least squared error of one group that the obvious search finds, in float64."""
    row = np.array(row, np.float64)
    low, high = extremes(bits)
    width = row.max() - row.min()
    if width == 0:
        return 0.0
    pairs = [(width / (high - low), row.min() - low * width / (high - low))]
    if scale_rule == "mse" and bits != 8:
        pairs = []
        for share in narrowed(bits):
            scale = share * width / (high - low)
            middle = (row.max() + row.min()) / 2 - scale * (low + high) / 2
            codes = np.clip(np.round((row - middle) / scale), low, high)
            if np.ptp(codes):
                pairs.append(np.polyfit(codes, row, 1))
    errors = []
    for scale, offset in pairs:
        codes = np.clip(np.round((row - offset) / scale), low, high)
        errors.append(float(np.sum((codes * scale + offset - row) ** 2)))
    return min(errors)


@searches
@settings(max_examples=60, deadline=None)
def test_with_an_offset_it_equals_the_obvious_search(N, K, bits, group_size, scale, seed):
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(seed)) + 0.5
    quantized = make(bits=bits, group_size=group_size, scale=scale, offset=True).quantize(weight)
    assert quantized.offset.shape == quantized.scale.shape
    error = (quantized.dequantize() - weight).double().square()
    size = group_size or K
    for n in range(N):
        row = weight[n].tolist()
        parts = [row[i : i + size] for i in range(0, K, size)]
        expected = sum(reference_with_offset(part, bits, scale) for part in parts)
        # the one that is best for its own codes need not be best for those that are nearest to it
        assert error[n].sum().item() <= 1.4 * expected + 1e-5
        if scale == "absmax":
            assert error[n].sum().item() == pytest.approx(expected, rel=0.05, abs=1e-5)


@given(st.sampled_from([2, 3, 4]), st.floats(1e-3, 1e3), st.floats(-10, 10), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_levels_anywhere_are_found(bits, unit, least, seed):
    """As GGUF's Q4_1 has them: what was quantised so once is not changed."""
    low, high = extremes(bits)
    codes = torch.randint(0, high - low + 1, (3, 32), generator=torch.Generator().manual_seed(seed))
    codes[:, 0], codes[:, 1] = 0, high - low
    weight = unit * (codes + least)
    found = make(bits=bits, offset=True, group_size=32).quantize(weight)
    assert torch.equal(found.codes, (codes + low).to(torch.int8))
    torch.testing.assert_close(found.dequantize(), weight, rtol=1e-5, atol=1e-5 * unit)
