"""torch's operators on the native kernels against the plain arithmetic, on every instruction set at hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import UsageError
from hybridkit.packing.codecs import codec
from hybridkit.packing.tiles import tile
from hybridkit.runtime import arithmetic, ops
from hybridkit.runtime.arithmetic import Geometry, Numbers, PackedMatrix
from hybridkit.runtime.native import load

assert ops  # the import defines torch.ops.hybridkit
NATIVE = load()
if NATIVE is None:
    pytest.skip("installed without the native library", allow_module_level=True)

CODECS = {"ternary": "two-bit", "binary": "one-bit"}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
kinds = st.sampled_from(["ternary", "binary"])
isas = st.sampled_from(NATIVE.isas)
types = st.sampled_from(DTYPES)
seeds = st.integers(0, 999)


def packed(kind, activations, N, K, seed, layout, group=1, positions=1):
    rng = np.random.default_rng(seed)
    found = codec(CODECS[kind])
    codes = found.pack(rng.choice(np.array(found.levels, np.int8), (N, K)))
    if layout:
        codes = tile(codes, K, 2 if kind == "ternary" else 1, group=group, positions=positions)
    vectors = [torch.from_numpy(rng.normal(size=N).astype(np.float32)) for _ in range(2)]
    return PackedMatrix(kind, activations, torch.from_numpy(codes), *vectors, K, N, layout)


def random_x(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 10.0 ** (seed % 6 - 3)).to(dtype)


def matmul(x, weight):
    operator = getattr(torch.ops.hybridkit, f"{weight.kind}_matmul_{weight.activations}")
    return operator(x, weight.codes, weight.scale, weight.bias, weight.K, weight.N, weight.layout)


def matmul_reference(x, weight):
    return arithmetic.matmul(x, weight.unpack(), Numbers(weight.scale), weight.bias, weight.activations)


def conv(x, weight, geometry):
    g = geometry
    operator = getattr(torch.ops.hybridkit, f"{weight.kind}_conv_{weight.activations}")
    tensors = (x, weight.codes, weight.scale, weight.bias, weight.K, weight.N)
    return operator(*tensors, g.kernel_shape, g.strides, g.pads, g.dilations, g.group, weight.layout)


def conv_reference(x, weight, geometry):
    matrix = weight.unpack(geometry.group, geometry.positions)
    return arithmetic.conv(x, matrix, Numbers(weight.scale), weight.bias, weight.activations, geometry)


def close(found, expected, magnitude):
    """Equal but for the order of a float32 sum of that magnitude, and for the rounding to the type."""
    step = torch.finfo(found.dtype).eps * expected.double().abs()
    return bool(((found.double() - expected.double()).abs() <= 2e-6 * magnitude + step).all())


@settings(max_examples=80, deadline=None)
@given(
    kinds,
    isas,
    types,
    st.sampled_from([0, 1, 1, 1]),
    st.tuples(st.sampled_from([0, 1, 2, 3, 5, 17, 40]), st.integers(1, 70), st.integers(1, 140)),
    st.integers(1, 3),
    seeds,
)
def test_int8_products_are_bit_identical(kind, isa, dtype, layout, shape, threads, seed):
    M, N, K = shape
    weight, x = packed(kind, "int8", N, K, seed, layout), random_x((M, K), dtype, seed)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with NATIVE.using_isa(isa):
            y = matmul(x, weight)
    finally:
        torch.set_num_threads(before)
    assert y.dtype == dtype
    assert torch.equal(y, matmul_reference(x, weight))


@settings(max_examples=40, deadline=None)
@given(
    kinds,
    isas,
    types,
    st.sampled_from([0, 1]),
    st.integers(0, 20),
    st.integers(1, 40),
    st.integers(1, 99),
    seeds,
)
def test_float_products_are_equal_to_rounding(kind, isa, dtype, layout, M, N, K, seed):
    weight, x = packed(kind, "float", N, K, seed, layout), random_x((M, K), dtype, seed)
    with NATIVE.using_isa(isa):
        y = matmul(x, weight)
    magnitude = x.double().abs().sum(-1, keepdim=True) * weight.scale.abs() + weight.bias.abs()
    assert y.dtype == dtype
    assert close(y, matmul_reference(x, weight), magnitude)


@settings(max_examples=60, deadline=None)
@given(
    kinds,
    st.sampled_from(["int8", "float"]),
    isas,
    types,
    st.sampled_from([0, 2, 2]),
    st.integers(0, 3),
    st.sampled_from([(4, 4, 1), (4, 6, 2), (3, 3, 3), (2, 40, 1), (34, 5, 1)]),
    st.sampled_from([[1], [3], [1, 1], [3, 3], [2, 4]]),
    st.tuples(*[st.integers(1, 3)] * 2),
    st.tuples(*[st.integers(1, 2)] * 2),
    st.tuples(*[st.integers(0, 2)] * 4),
    seeds,
)
def test_convolutions(
    kind, activations, isa, dtype, layout, batch, channels, kernel, strides, dilations, pads, seed
):
    C, N, group = channels
    dims = len(kernel)
    geometry = Geometry(kernel, list(strides[:dims]), list(pads[: 2 * dims]), list(dilations[:dims]), group)
    K = C // group * geometry.positions
    weight = packed(kind, activations, N, K, seed, layout, group, geometry.positions)
    x = random_x((batch, C, *(7, 9)[:dims]), dtype, seed)
    with NATIVE.using_isa(isa):
        y = conv(x, weight, geometry)
    expected = conv_reference(x, weight, geometry)
    assert y.dtype == dtype
    assert y.shape == expected.shape
    if activations == "int8":
        assert torch.equal(y, expected)
    elif batch:
        magnitude = x.double().abs().max() * K * weight.scale.abs().max() + weight.bias.abs().max()
        assert close(y, expected, magnitude)


@pytest.mark.parametrize("isa", NATIVE.isas)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hostile", [float("nan"), float("inf"), -float("inf")])
def test_a_row_or_sample_that_is_not_finite_is_nan_and_its_neighbours_are_not(isa, dtype, hostile):
    weight = packed("ternary", "int8", 20, 50, 0, 1)
    x = random_x((5, 50), dtype, 3)
    x[2, 49] = hostile
    geometry = Geometry([3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1)
    kernels = packed("binary", "int8", 6, 18, 0, 2, 1, 9)
    images = random_x((3, 2, 8, 8), dtype, 3)
    images[1, 0, 0, 0] = hostile
    with NATIVE.using_isa(isa):
        rows, samples = matmul(x, weight), conv(images, kernels, geometry)
    for found, expected, index in (
        (rows, matmul_reference(x, weight), 2),
        (samples, conv_reference(images, kernels, geometry), 1),
    ):
        assert torch.isnan(expected[index]).all()
        assert torch.equal(found.nan_to_num(123), expected.nan_to_num(123))


@pytest.mark.parametrize("isa", NATIVE.isas)
def test_float_products_of_what_is_not_finite(isa):
    """As a float32 product: NaN where a term is NaN or infinities meet, else infinite."""
    weight = packed("binary", "float", 20, 50, 0, 1)
    x = random_x((3, 50), torch.float32, 3)
    x[0, 3], x[1, 3] = float("nan"), float("inf")
    with NATIVE.using_isa(isa):
        y = matmul(x, weight)
    expected = matmul_reference(x, weight)
    assert torch.isnan(y[0]).all()
    assert torch.equal(y[1], expected[1])
    assert torch.isfinite(y[2]).all()


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_any_strides_and_shapes(activations):
    weight = packed("ternary", activations, 20, 50, 0, 1)
    wide = random_x((6, 100), torch.float32, 0)
    for x in (
        wide[:, ::2],
        wide[:, 50:],
        random_x((50, 6), torch.float32, 0).T,
        random_x((1, 50), torch.float32, 0).expand(4, 50),
        random_x((50,), torch.float32, 0),
        random_x((2, 1, 3, 50), torch.bfloat16, 0),
        torch.zeros(2, 0, 50),
        torch.zeros(1, 50),
    ):
        assert close(matmul(x, weight), matmul_reference(x, weight), 100)
    geometry = Geometry([2, 3], [2, 1], [0, 1, 1, 0], [1, 2], 1)
    kernels = packed("binary", activations, 6, 18, 0, 2, 1, 6)
    image = random_x((2, 3, 8, 9), torch.float32, 0)
    for x in (
        image.contiguous(memory_format=torch.channels_last),
        image.transpose(2, 3),
        image[:, :, 1:, ::2],
        image[:0],
    ):
        assert close(conv(x, kernels, geometry), conv_reference(x, kernels, geometry), 100)


def test_scales_of_another_type_or_stride():
    weight = packed("ternary", "int8", 20, 50, 0, 1)
    x = random_x((3, 50), torch.float32, 0)
    half = weight._replace(scale=weight.scale.bfloat16(), bias=weight.bias.bfloat16())
    assert torch.equal(matmul(x, half), matmul_reference(x, half))
    strided = weight._replace(scale=torch.stack([weight.scale, weight.bias], 1)[:, 0])
    assert torch.equal(matmul(x, strided), matmul(x, weight))


def test_an_empty_matrix():
    for activations, N, K in (("int8", 0, 8), ("float", 0, 8), ("float", 8, 0)):
        weight = packed("ternary", activations, N, K, 0, 0)
        assert torch.equal(matmul(torch.zeros(2, K), weight), weight.bias.expand(2, N))


def test_codes_of_a_wrong_size_never_reach_the_kernels():
    weight = packed("ternary", "int8", 20, 50, 0, 1)
    x = torch.zeros(3, 50)
    with pytest.raises(UsageError, match="not the ternary codes of a matrix"):
        matmul(x, weight._replace(codes=weight.codes[:1]))
    with pytest.raises(UsageError, match="not the ternary codes of a matrix"):
        matmul(x, weight._replace(codes=weight.codes.view(torch.int8)))
    with pytest.raises(UsageError, match="must both be"):
        matmul(x, weight._replace(bias=weight.bias[1:]))
    with pytest.raises(UsageError, match="bytes, the layer's shape needs"):
        matmul(x, weight._replace(codes=torch.zeros(20, 12, dtype=torch.uint8), layout=0))
    geometry = Geometry([3], [1], [0, 0], [1], 1)
    kernels = packed("ternary", "int8", 5, 12, 0, 2, 1, 3)
    with pytest.raises(UsageError, match="K is not channels / group"):
        conv(torch.zeros(1, 3, 9), kernels, geometry)
    with pytest.raises(UsageError, match="larger than the padded input"):
        conv(torch.zeros(1, 4, 2), kernels, geometry)
