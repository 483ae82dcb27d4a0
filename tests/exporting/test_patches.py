"""Patches of a convolution: times its weight they are the convolution."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.exporting.onnx_quantize.patches import patches


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_they_multiply_to_the_convolution(space, batch, groups, kernel, stride, dilation, pad):
    generator = torch.Generator().manual_seed(kernel + 10 * space)
    channels, N = 2 * groups, 3 * groups
    x = torch.randn(batch, channels, *[7] * space, generator=generator)
    weight = torch.randn(N, 2, *[kernel] * space, generator=generator)
    how = {"stride": stride, "dilation": dilation, "padding": pad, "groups": groups}
    wanted = [F.conv1d, F.conv2d, F.conv3d][space - 1](x, weight, **how)
    geometry = {
        "strides": [stride] * space,
        "dilations": [dilation] * space,
        "pads": [pad] * (2 * space),
        "group": groups,
    }
    found = torch.from_numpy(patches(x.numpy(), weight.shape, geometry))
    found = found.view(batch, groups, -1, found.shape[1])  # [batch, groups, places, K]
    rows = weight.view(groups, N // groups, -1)
    ours = torch.einsum("bgpk,gnk->bgnp", found, rows).reshape(wanted.shape)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def test_pads_of_two_sides_differ():
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 4)
    geometry = {"strides": [1], "dilations": [1], "pads": [1, 0], "group": 1}
    found = patches(x, (1, 1, 2), geometry)
    assert found.tolist() == [[0, 0], [0, 1], [1, 2], [2, 3]]


def test_there_are_not_too_many(monkeypatch):
    monkeypatch.setattr("hybridkit.exporting.onnx_quantize.patches.MOST", 200)
    x = np.zeros((2, 4, 20, 20), np.float32)
    geometry = {"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "group": 2}
    assert patches(x, (6, 2, 3, 3), geometry).size <= 200 + 18  # a patch
