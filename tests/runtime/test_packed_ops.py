"""The torch operators against a twin in exact integers and single fp32 operations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import UsageError
from hybridkit.packing.codecs import codec
from hybridkit.packing.tiles import tile
from hybridkit.runtime import ops

assert ops  # the import defines torch.ops.hybridkit

CODECS = {"ternary": "two-bit", "binary": "one-bit"}
F32 = np.float32


def codes_for(name, N, K, seed):
    found = codec(name)
    q = np.random.default_rng(seed).choice(np.array(found.levels, np.int8), (N, K))
    return q, torch.from_numpy(found.pack(q))


def vector(n, seed):
    return np.random.default_rng(seed).normal(size=n).astype(F32)


def activation_codes(row):
    """ONNX.md's int8 activations of one row (or sample), value by value in fp32."""
    scale = F32(max(F32(np.abs(row).max()), F32(1e-5))) / F32(127)
    return np.clip(np.round(row / scale), -127, 127).astype(np.int64), scale


def matmul_int8_reference(x, q, scale, bias):
    out = np.zeros((len(x), len(q)), F32)
    for i, row in enumerate(x):
        a, s_x = activation_codes(row)
        for n in range(len(q)):
            dot = int((a * q[n].astype(np.int64)).sum())
            out[i, n] = F32(dot) * (s_x * scale[n]) + bias[n]
    return out


def conv2d_integer(a, q, C, strides, pads, dilations, group):
    """Integer convolution by its definition; a [C, H, W], q [N, C/group, kh, kw]."""
    a = np.pad(a, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    N, per_group, kh, kw = q.shape
    H = (a.shape[1] - dilations[0] * (kh - 1) - 1) // strides[0] + 1
    W = (a.shape[2] - dilations[1] * (kw - 1) - 1) // strides[1] + 1
    out = np.zeros((N, H, W), np.int64)
    for n in range(N):
        first = n // (N // group) * per_group
        for i in range(H):
            for j in range(W):
                top, left = i * strides[0], j * strides[1]
                patch = a[
                    first : first + per_group,
                    top : top + dilations[0] * (kh - 1) + 1 : dilations[0],
                    left : left + dilations[1] * (kw - 1) + 1 : dilations[1],
                ]
                out[n, i, j] = (patch * q[n].astype(np.int64)).sum()
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["ternary", "binary"]),
    st.integers(0, 4),
    st.integers(1, 67),
    st.integers(0, 19),
    st.integers(0, 999),
)
def test_matmul_int8_is_bit_identical_to_the_reference(kind, rows, K, N, seed):
    q, packed = codes_for(CODECS[kind], N, K, seed)
    x, scale, bias = (
        vector((rows, K), seed) * F32(10 ** (seed % 7 - 3)),
        vector(N, seed + 1),
        vector(N, seed + 2),
    )
    operator = getattr(torch.ops.hybridkit, f"{kind}_matmul_int8")
    y = operator(torch.from_numpy(x), packed, torch.from_numpy(scale), torch.from_numpy(bias), K, N)
    assert np.array_equal(y.numpy(), matmul_int8_reference(x, q, scale, bias))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["ternary", "binary"]), st.integers(1, 67), st.integers(1, 19), st.integers(0, 999))
def test_matmul_float_equals_the_reference_to_rounding(kind, K, N, seed):
    q, packed = codes_for(CODECS[kind], N, K, seed)
    x, scale, bias = vector((2, 3, K), seed), vector(N, seed + 1), vector(N, seed + 2)
    operator = getattr(torch.ops.hybridkit, f"{kind}_matmul_float")
    y = operator(torch.from_numpy(x), packed, torch.from_numpy(scale), torch.from_numpy(bias), K, N)
    exact = (x.astype(float) @ q.T) * scale + bias
    bound = 1e-6 * (np.abs(x).sum(-1, keepdims=True) * np.abs(scale) + np.abs(bias) + 1)
    assert (np.abs(y.numpy() - exact) <= bound).all()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["ternary", "binary"]),
    st.integers(1, 3),
    st.sampled_from([(4, 4, 1), (4, 6, 2), (3, 3, 3)]),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.integers(0, 999),
)
def test_conv2d_int8_is_bit_identical_to_the_reference(
    kind, B, channels, kernel, strides, pads, dilations, seed
):
    C, N, group = channels
    K = C // group * kernel[0] * kernel[1]
    q, packed = codes_for(CODECS[kind], N, K, seed)
    x, scale, bias = vector((B, C, 6, 7), seed), vector(N, seed + 1), vector(N, seed + 2)
    operator = getattr(torch.ops.hybridkit, f"{kind}_conv_int8")
    tensors = (torch.from_numpy(x), packed, torch.from_numpy(scale), torch.from_numpy(bias))
    y = operator(*tensors, K, N, list(kernel), list(strides), list(pads), list(dilations), group)
    kernels = q.reshape(N, C // group, *kernel)
    for sample, out in zip(x, y.numpy(), strict=True):
        a, s_x = activation_codes(sample)
        dots = conv2d_integer(a, kernels, C, strides, pads, dilations, group).astype(F32)
        assert np.array_equal(out, dots * (s_x * scale)[:, None, None] + bias[:, None, None])


def test_conv1d_is_conv2d_with_one_row():
    _, packed = codes_for("two-bit", 5, 12, 0)
    x, scale, bias = (torch.from_numpy(vector(n, i)) for i, n in enumerate([(2, 4, 9), 5, 5]))
    line = torch.ops.hybridkit.ternary_conv_int8(x, packed, scale, bias, 12, 5, [3], [2], [1, 2], [1], 1)
    plane = torch.ops.hybridkit.ternary_conv_int8(
        x[:, :, None], packed, scale, bias, 12, 5, [1, 3], [1, 2], [0, 1, 0, 2], [1, 1], 1
    )
    assert line.shape == (2, 5, 5)
    assert torch.equal(line, plane[:, :, 0])


@pytest.mark.parametrize("batch", [1, 16, 33])
@pytest.mark.parametrize("shape", [(16, 16, 3), (32, 8, 1), (8, 24, 5)])
def test_large_convolutions_stay_exact(batch, shape):
    """Fast convolution algorithms (Winograd) are not exact; the result must not show one."""
    C, N, k = shape
    K = C * k * k
    q, packed = codes_for("two-bit", N, K, batch)
    x = torch.randint(-127, 128, (batch, C, 14, 14), generator=torch.Generator().manual_seed(0)).float()
    x[:, 0, 0, 0] = 127  # so that the activation scale is 1
    pads = [k // 2] * 4
    y = torch.ops.hybridkit.ternary_conv_int8(
        x, packed, torch.ones(N), torch.zeros(N), K, N, [k, k], [1, 1], pads, [1, 1], 1
    )
    kernels = torch.from_numpy(q).double().reshape(N, C, k, k)
    assert torch.equal(y.double(), torch.nn.functional.conv2d(x.double(), kernels, padding=k // 2))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([2, 4, 8]),
    st.sampled_from(["int8", "float"]),
    st.sampled_from([0, 1, 4, 32]),
    st.booleans(),
    st.integers(1, 67),
    st.integers(1, 9),
    st.integers(0, 999),
)
def test_nbit_matmul(bits, activations, group_size, has_offset, K, N, seed):
    q, packed = codes_for(f"nbit{bits}", N, K, seed)
    groups = (N, -(-K // group_size)) if group_size else N
    x, scale, bias = vector((3, K), seed), vector(groups, seed + 1), vector(N, seed + 2)
    offset = torch.from_numpy(vector(groups, seed + 3)) if has_offset else None
    operator = getattr(torch.ops.hybridkit, f"nbit_matmul_{activations}")
    rest = (torch.from_numpy(array) for array in (scale, bias))
    y = operator(torch.from_numpy(x), packed, *rest, offset, K, N, bits, group_size).numpy()
    if activations == "int8" and group_size == 0 and not has_offset:
        assert np.array_equal(y, matmul_int8_reference(x, q, scale, bias))

    def spread(numbers):
        wide = np.repeat(numbers, group_size, axis=1)[:, :K] if group_size else numbers[:, None]
        return wide.astype(float)

    weight = q * spread(scale) + (spread(offset.numpy()) if has_offset else 0)
    seen = x.astype(float)
    if activations == "int8":
        seen = np.stack([a * float(s) for a, s in map(activation_codes, x)])
    assert np.allclose(y, seen @ weight.T + bias, rtol=1e-5, atol=1e-5 * (1 << bits) * np.sqrt(K))


def test_nbit_conv_with_groups_equals_the_dequantised_convolution():
    q, packed = codes_for("nbit4", 6, 18, 0)
    sizes = [(2, 2, 7, 7), (6, 3), 6, (6, 3)]
    x, scale, bias, offset = (torch.from_numpy(vector(n, i)) for i, n in enumerate(sizes))
    geometry = ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1)
    weight = torch.from_numpy(q).float() * scale.repeat_interleave(8, dim=1)[:, :18]
    weight += offset.repeat_interleave(8, dim=1)[:, :18]
    expected = torch.nn.functional.conv2d(x, weight.reshape(6, 2, 3, 3), bias, padding=1)
    y = torch.ops.hybridkit.nbit_conv_float(x, packed, scale, bias, offset, 18, 6, *geometry, 4, 8)
    assert torch.allclose(y, expected, atol=1e-4)
    rough = torch.ops.hybridkit.nbit_conv_int8(x, packed, scale, bias, offset, 18, 6, *geometry, 4, 8)
    assert torch.allclose(rough, expected, atol=0.05 * float(expected.abs().max()))
    assert not torch.equal(rough, y)


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_embedding(kind):
    q, packed = codes_for(CODECS[kind], 11, 7, 0)
    scale = torch.from_numpy(vector(11, 1))
    indices = torch.tensor([[0, 10, 3], [3, 3, 9]])
    operator = getattr(torch.ops.hybridkit, f"{kind}_embedding")
    table = torch.from_numpy(q).float() * scale[:, None]
    assert torch.equal(operator(indices, packed, scale, 7, 11), table[indices])
    for wrong in (-1, 11):
        with pytest.raises(IndexError):
            operator(torch.tensor([wrong]), packed, scale, 7, 11)


def test_nbit_embedding_in_groups():
    q, packed = codes_for("nbit4", 11, 7, 0)
    scale, offset = torch.from_numpy(vector((11, 3), 1)), torch.from_numpy(vector((11, 3), 2))
    table = torch.from_numpy(q).float() * scale.repeat_interleave(3, dim=1)[:, :7]
    indices, rest = torch.tensor([10, 0]), (7, 11, 4, 3)
    operator = torch.ops.hybridkit.nbit_embedding
    assert torch.equal(operator(indices, packed, scale, None, *rest), table[indices])
    table += offset.repeat_interleave(3, dim=1)[:, :7]
    assert torch.equal(operator(indices, packed, scale, offset, *rest), table[indices])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_computed_in_fp32_and_cast_back(dtype):
    _, packed = codes_for("two-bit", 5, 40, 0)
    x = torch.from_numpy(vector((3, 40), 1)).to(dtype)
    rest = (packed, torch.from_numpy(vector(5, 2)), torch.from_numpy(vector(5, 3)), 40, 5)
    y = torch.ops.hybridkit.ternary_matmul_int8(x, *rest)
    assert y.dtype == dtype
    assert torch.equal(y, torch.ops.hybridkit.ternary_matmul_int8(x.float(), *rest).to(dtype))
    y = torch.ops.hybridkit.ternary_matmul_float(x, *rest)
    assert y.dtype == dtype
    # float64 is computed in plain torch, which may sum in another order
    expected = torch.ops.hybridkit.ternary_matmul_float(x.float(), *rest)
    assert torch.allclose(y.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_a_row_of_zeros_gives_the_bias():
    _, packed = codes_for("two-bit", 5, 40, 0)
    bias = torch.from_numpy(vector(5, 3))
    y = torch.ops.hybridkit.ternary_matmul_int8(torch.zeros(2, 40), packed, torch.ones(5), bias, 40, 5)
    assert torch.equal(y, bias.expand(2, 5))


def test_wrong_inputs_get_a_clear_error():
    _, packed = codes_for("two-bit", 5, 12, 0)
    rest = (packed, torch.ones(5), torch.zeros(5), 12, 5)
    with pytest.raises(UsageError, match="knows layouts 0 and 1 of these codes, not 2"):
        torch.ops.hybridkit.ternary_matmul_int8(torch.zeros(1, 12), *rest, 2)
    geometry = ([2, 2], [1, 1], [0] * 4, [1, 1], 1)
    with pytest.raises(UsageError, match="knows layouts 0 and 2 of these codes, not 1"):
        torch.ops.hybridkit.ternary_conv_int8(torch.zeros(1, 3, 8, 8), *rest, *geometry, 1)
    with pytest.raises(UsageError, match=r"takes 12 features in the last dimension, not \[1, 13\]"):
        torch.ops.hybridkit.ternary_matmul_int8(torch.zeros(1, 13), *rest)
    with pytest.raises(UsageError, match=r"takes 4 dimensions .*not \[3, 8, 8\]"):
        torch.ops.hybridkit.ternary_conv_int8(torch.zeros(3, 8, 8), *rest, *geometry)


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_an_embedding_in_tiles(kind):
    N, K = 37, 75
    _, packed = codes_for(CODECS[kind], N, K, 0)
    tiles = torch.from_numpy(tile(packed.numpy(), K, 2 if kind == "ternary" else 1))
    scale, indices = torch.from_numpy(vector(N, 1)), torch.tensor([[0, 36, 16], [15, 15, 31]])
    operator = getattr(torch.ops.hybridkit, f"{kind}_embedding")
    assert torch.equal(operator(indices, tiles, scale, K, N, 1), operator(indices, packed, scale, K, N))
    for wrong in (-1, N):
        with pytest.raises(IndexError):
            operator(torch.tensor([wrong]), tiles, scale, K, N, 1)


def test_a_gradient_is_refused():
    _, packed = codes_for("two-bit", 5, 12, 0)
    x = torch.randn(2, 12, requires_grad=True)
    y = torch.ops.hybridkit.ternary_matmul_int8(x, packed, torch.ones(5), torch.zeros(5), 12, 5)
    with pytest.raises(UsageError, match="packed layers have no gradient"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["ternary", "binary", "nbit"])
@pytest.mark.parametrize("activations", ["int8", "float"])
def test_torch_accepts_the_operators(name, activations):
    """Schema, fake kernel and dispatch, by torch's own checks."""
    extra = (4, 0) if name == "nbit" else ()
    _, packed = codes_for({"nbit": "nbit4"}.get(name, CODECS.get(name)), 5, 12, 0)
    offset = (torch.ones(5),) if name == "nbit" else ()
    rest = (packed, torch.ones(5), torch.zeros(5), *offset, 12, 5)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    matmul = getattr(torch.ops.hybridkit, f"{name}_matmul_{activations}").default
    torch.library.opcheck(matmul, (torch.randn(2, 3, 12), *rest, *extra), test_utils=checks)
    conv = getattr(torch.ops.hybridkit, f"{name}_conv_{activations}").default
    geometry = ([2, 2], [2, 1], [0, 1, 1, 0], [1, 2], 1)
    torch.library.opcheck(conv, (torch.randn(2, 3, 8, 9), *rest, *geometry, *extra), test_utils=checks)
    embedding = getattr(torch.ops.hybridkit, f"{name}_embedding").default
    arguments = (torch.tensor([[1, 4]]), packed, torch.ones(5), *offset, 12, 5, *extra)
    torch.library.opcheck(embedding, arguments, test_utils=checks)
