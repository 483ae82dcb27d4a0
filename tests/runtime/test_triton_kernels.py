"""The Triton kernels against the plain arithmetic: on a GPU, or interpreted where there is none."""

import sys

import numpy as np
import pytest
import torch

from hybridkit.packing.codecs import codec
from hybridkit.packing.tiles import tile
from hybridkit.runtime import arithmetic, ops
from hybridkit.runtime.arithmetic import Numbers, PackedMatrix

CODECS = {"ternary": "two-bit", "binary": "one-bit"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and "triton" in sys.modules:
    pytest.skip("triton was imported already, and not for interpreting", allow_module_level=True)
with pytest.MonkeyPatch.context() as patch:
    if DEVICE == "cpu":
        patch.setenv(
            "TRITON_INTERPRET", "1"
        )  # read where functions are defined, triton's own too, and called
    pytest.importorskip("triton", reason="triton comes with the CUDA builds of torch only")
    from hybridkit.runtime import triton_kernels as kernels


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def packed(kind, activations, N, K, seed):
    rng = np.random.default_rng(seed)
    found = codec(CODECS[kind])
    rows = found.pack(rng.choice(np.array(found.levels, np.int8), (N, K)))
    vectors = [torch.from_numpy(rng.normal(size=N).astype(np.float32)) for _ in range(2)]
    tiles = torch.from_numpy(tile(rows, K, 2 if kind == "ternary" else 1))
    return PackedMatrix(kind, activations, tiles, *vectors, K, N, 1)


def to_device(weight):
    return weight._replace(**{name: getattr(weight, name).to(DEVICE) for name in ("codes", "scale", "bias")})


def reference(x, weight):
    return arithmetic.matmul(x, weight.unpack(), Numbers(weight.scale), weight.bias, weight.activations)


def identical(found, expected):
    if DEVICE == "cpu" and found.dtype == torch.bfloat16:  # the interpreter cuts bits off where a GPU rounds
        return torch.allclose(found.float(), expected.float(), rtol=2**-7, atol=0)
    return torch.equal(found, expected)


SHAPES = [(1, 1, 1), (1, 5, 1100), (2, 3, 5), (17, 70, 130), (65, 20, 33)]


@pytest.mark.parametrize("kind", ["ternary", "binary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_int8_is_bit_identical_to_the_arithmetic(kind, dtype, M, N, K):
    weight = packed(kind, "int8", N, K, M + N + K)
    x = (torch.randn(M, K, generator=torch.Generator().manual_seed(K)) * 3).to(dtype)
    assert identical(kernels.matmul(x.to(DEVICE), to_device(weight)).cpu(), reference(x, weight))


@pytest.mark.parametrize("kind", ["ternary", "binary"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_float_equals_the_arithmetic_to_rounding(kind, dtype, M, N, K):
    if DEVICE == "cpu" and dtype == torch.bfloat16 and M > 1:
        pytest.skip("triton's interpreter cannot multiply matrices of bfloat16")
    weight = packed(kind, "float", N, K, M + N + K)
    x = torch.randn(M, K, generator=torch.Generator().manual_seed(K)).to(dtype)
    found, expected = kernels.matmul(x.to(DEVICE), to_device(weight)).cpu(), reference(x, weight)
    assert found.dtype == dtype
    size = float(x.float().abs().sum(-1).max() * weight.scale.abs().max() + weight.bias.abs().max())
    step = torch.finfo(dtype).eps * expected.float().abs()  # where y is rounded the other way
    assert ((found.float() - expected.float()).abs() <= 1e-6 * size + step).all()


@pytest.mark.parametrize("M", [1, 3])
def test_rows_with_a_nan_or_an_infinity_are_nan(M):
    weight = packed("ternary", "int8", 20, 50, 0)
    for hostile in (float("nan"), float("inf"), -float("inf")):
        x = torch.randn(M, 50)
        x[-1, 7] = hostile
        y = kernels.matmul(x.to(DEVICE), to_device(weight)).cpu()
        assert torch.isnan(y[-1]).all()
        assert torch.equal(y[:-1], reference(x[:-1], weight))


def test_zeros_no_rows_strides_and_more_dimensions():
    weight = packed("binary", "int8", 20, 50, 0)
    on_device = to_device(weight)
    for x in (
        torch.zeros(2, 50),
        torch.zeros(0, 50),
        torch.randn(50),
        torch.randn(50, 6).T,
        torch.randn(2, 1, 3, 50),
    ):
        assert torch.equal(kernels.matmul(x.to(DEVICE), on_device).cpu(), reference(x, weight))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("activations", ["int8", "float"])
def test_operators_take_the_kernels_on_a_gpu(activations):
    weight = to_device(packed("ternary", activations, 20, 50, 0))
    x = torch.randn(4, 50, device=DEVICE, dtype=torch.float16)
    assert ops._gpu(x, weight) is kernels
    operator = getattr(torch.ops.hybridkit, f"ternary_matmul_{activations}")
    y = operator(x, weight.codes, weight.scale, weight.bias, 50, 20, 1)
    assert torch.equal(y, kernels.matmul(x, weight))
