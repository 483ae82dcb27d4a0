"""Quantizers for NumPy arrays give what their twins in torch give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hybridkit.errors import UsageError
from hybridkit.exporting.onnx_quantize.quantizers import QUANTIZERS, make_quantizer
from hybridkit.registry import registry

few = settings(max_examples=15, deadline=None)
cases = [
    ("ternary-mse", {}),
    ("ternary-absmean", {}),
    ("ternary-absmean", {"scale_multiplier": 1.5}),
    ("binary", {}),
    *[
        ("nbit", {"bits": bits, "group_size": group, "scale": scale})
        for bits in (2, 4, 8)
        for group in (0, 5, 32)
        for scale in ("mse", "absmax")
    ],
]


@pytest.mark.parametrize(("name", "options"), cases)
@few
@example(N=1, K=1, magnitude=1.0, zeros=False, seed=0)
@example(N=3, K=40, magnitude=1e-30, zeros=True, seed=1)
@given(
    N=st.integers(1, 6),
    K=st.integers(1, 70),
    magnitude=st.sampled_from([1e-3, 1.0, 1e4]),
    zeros=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_same_codes_as_in_torch(name, options, N, K, magnitude, zeros, seed):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(N, K)) * magnitude).astype(np.float32)
    if zeros:
        weight[0] = 0
    ours = make_quantizer(name, options).quantize(weight)
    theirs = registry().create("quantizer", name, options).quantize(torch.from_numpy(weight))
    assert ours.group_size == theirs.group_size
    np.testing.assert_allclose(ours.scale, theirs.scale.numpy(), rtol=1e-5)
    # a weight within rounding of the middle between two codes may fall on either side
    assert np.mean(ours.codes != theirs.codes.numpy()) <= (0.01 if ours.codes.size > 100 else 0)
    np.testing.assert_allclose(
        np.linalg.norm(ours.dequantize() - weight),
        np.linalg.norm(theirs.dequantize().numpy() - weight),
        rtol=1e-4,
        atol=1e-6 * magnitude,
    )


@few
@given(K=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_no_ternary_codes_are_closer_than_those_of_least_squares(K, seed):
    row = np.random.default_rng(seed).normal(size=(1, K)).astype(np.float32)
    found = np.linalg.norm(make_quantizer("ternary-mse").quantize(row).dequantize() - row)
    for codes in np.ndindex(*[3] * K):
        q = np.array(codes, np.float64) - 1
        scale = max(float(row[0] @ q), 0) / max(float(q @ q), 1)
        assert found <= np.linalg.norm(scale * q - row[0]) + 1e-5


def test_what_there_is_and_what_not():
    for name in QUANTIZERS:
        assert make_quantizer(name).bits in (1, 2, 4)
    with pytest.raises(UsageError, match="no quantizer for ONNX files is called 'ternary-learned'"):
        make_quantizer("ternary-learned")
    with pytest.raises(UsageError, match="nbit: bits='3'"):
        make_quantizer("nbit", {"bits": "3"})
    with pytest.raises(UsageError, match="no option 'bit'; did you mean 'bits'"):
        make_quantizer("nbit", {"bit": 4})
