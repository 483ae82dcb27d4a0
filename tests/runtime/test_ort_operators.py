"""The native operators against the portable bodies on stock ONNX Runtime: int8 is equal bit for bit."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ort_models import needs_library, node_model, random_layer, run, session_of, tiled

from hybridkit.exporting.functions import DENSE
from hybridkit.runtime import native

pytestmark = needs_library
quick = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**31)
MODES = ["Int8", "Float"]
PREFIXES = ["Ternary", "Binary"]
DTYPES = ["float32", "float16", "bfloat16"]
RESOLUTION = {"float32": 2**-22, "float16": 2**-10, "bfloat16": 2**-7}  # of a rounding, and one more


def activations(shape, seed, exponent=0):
    x = np.random.default_rng(seed).normal(size=shape) * 10.0**exponent
    return x.astype(np.float32)


def assert_same(mode, dtype, native, portable, bound):
    """`bound` is the largest absolute sum of a float product: its order is not specified."""
    assert native.shape == portable.shape
    if mode == "Int8":
        np.testing.assert_array_equal(native, portable)
    else:
        step = RESOLUTION[dtype]
        np.testing.assert_allclose(native, portable, rtol=step, atol=2**-20 * bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("prefix", "mode"), [*itertools.product([*PREFIXES, "Sparse34"], MODES), ("Base3", "Int8")]
)
@quick
@example(N=1, K=1, lead=[], layout=1, exponent=0, seed=0)
@example(N=17, K=777, lead=[2], layout=0, exponent=0, seed=1)
@example(N=48, K=129, lead=[2, 0, 3], layout=1, exponent=0, seed=2)
@example(N=33, K=64, lead=[40], layout=1, exponent=0, seed=3)
@given(
    N=st.integers(1, 70),
    K=st.integers(1, 150),
    lead=st.lists(st.integers(0, 4), max_size=3),
    layout=st.integers(0, 1),
    exponent=st.integers(-6, 2),
    seed=seeds,
)
def test_matmul(prefix, mode, dtype, N, K, lead, layout, exponent, seed):
    layer = random_layer(prefix, N, K, seed)
    layout = 0 if prefix in DENSE else layout
    held = layer if layout == 0 else tiled(layer, prefix, K)
    x = activations((*lead, K), seed, exponent)
    shape = [f"d{i}" for i in range(len(lead))] + [K]
    model = node_model(f"{prefix}MatMul{mode}", held, shape, dtype=dtype, N=N, K=K, layout=layout)
    native = run(model, x)
    assert native.shape == (*lead, N)
    if x.size == 0:  # ReduceMax of older runtimes gives nothing the right shape
        return
    portable = run(model, x, native=False)
    bound = np.abs(x).sum(-1).max(initial=0) * layer["scale"].max() + 3
    assert_same(mode, dtype, native, portable, bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["Int8", "Int8Blocks", "Float"])
@pytest.mark.parametrize("prefix", ["NBit1", "NBit2", "NBit4", "NBit8"])
@quick
@example(N=1, K=1, lead=[], layout=1, group_size=16, scales="float16", exponent=0, seed=0)
@example(N=17, K=777, lead=[2], layout=0, group_size=64, scales="rounded", exponent=0, seed=1)
@example(N=40, K=129, lead=[2, 0, 3], layout=1, group_size=32, scales="float32", exponent=0, seed=2)
@example(N=33, K=70, lead=[40], layout=1, group_size=65536, scales="float32", exponent=0, seed=3)
@given(
    N=st.integers(1, 70),
    K=st.integers(1, 150),
    lead=st.lists(st.integers(0, 4), max_size=3),
    layout=st.integers(0, 1),
    group_size=st.sampled_from([16, 32, 48, 128]),
    scales=st.sampled_from(["float32", "rounded", "float16"]),
    exponent=st.integers(-6, 2),
    seed=seeds,
)
def test_nbit_matmul(prefix, mode, dtype, N, K, lead, layout, group_size, scales, exponent, seed):
    if prefix == "NBit1":
        group_size += group_size % 32
    layer = random_layer(prefix, N, K, seed, group_size)
    if scales != "float32":  # kernels keep what is float16 as such
        layer["scale"] = layer["scale"].astype(np.float16)
    if scales == "rounded":
        layer["scale"] = layer["scale"].astype(np.float32)
    held = layer if layout == 0 else tiled(layer, prefix, K)
    x = activations((*lead, K), seed, exponent)
    shape = [f"d{i}" for i in range(len(lead))] + [K]
    attributes = {"N": N, "K": K, "layout": layout, "group_size": group_size}
    model = node_model(f"{prefix}MatMul{mode}", held, shape, dtype=dtype, **attributes)
    native = run(model, x)
    assert native.shape == (*lead, N)
    if x.size == 0:
        return
    portable = run(model, x, native=False)
    bound = np.abs(x).sum(-1).max(initial=0) * layer["scale"].max() * 2 ** (int(prefix[-1]) - 1) + 3
    assert_same("Float" if mode == "Float" else "Int8", dtype, native, portable, bound)


@pytest.mark.parametrize(
    ("prefix", "mode", "N", "K"),
    [
        ("Sparse34", "Int8", 40, 300),
        ("Sparse34", "Float", 40, 300),
        ("Base3", "Int8", 40, 300),
        ("Base3", "Int8", 1500, 1430),  # so large that it stays so
    ],
)
def test_dense_codes_on_every_instruction_set(prefix, mode, N, K):
    """Where no kernel reads them they become ternary as the session is made."""
    x = activations((5, K), 1)
    layer = random_layer(prefix, N, K, 0)
    model = node_model(f"{prefix}MatMul{mode}", layer, ["rows", K], N=N, K=K, layout=0)
    portable = run(model, x, native=False)
    library = native.load()
    for isa in library.isas:
        with library.using_isa(isa):
            for rows in (1, 5):
                assert_same(mode, "float32", run(model, x[:rows]), portable[:rows], 100)


@pytest.mark.parametrize("scales", [np.float32, np.float16])
@pytest.mark.parametrize("mode", ["Int8", "Int8Blocks", "Float"])
def test_nbit_layers_that_are_inputs(mode, scales):
    N, K = 20, 70
    layer = tiled(random_layer("NBit4", N, K, 0, 32), "NBit4", K)
    layer["scale"] = layer["scale"].astype(scales)
    attributes = {"N": N, "K": K, "layout": 1, "group_size": 32}
    x = activations((3, K), 1)
    constant, passed = (
        node_model(f"NBit4MatMul{mode}", layer, ["rows", K], constant=how, **attributes)
        for how in (True, False)
    )
    np.testing.assert_array_equal(run(passed, x, **layer), run(constant, x))


@st.composite
def convolutions(draw):
    axes = draw(st.integers(1, 3))
    group = draw(st.integers(1, 3))

    def each(low, high, count=axes):
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    geometry = {
        "kernel_shape": each(1, 3),
        "strides": each(1, 3),
        "pads": each(0, 2, 2 * axes),
        "dilations": each(1, 2),
        "group": group,
    }
    reach = [d * (k - 1) + 1 for d, k in zip(geometry["dilations"], geometry["kernel_shape"], strict=True)]
    size = [max(r + extra, 1) for r, extra in zip(reach, each(0, 4), strict=True)]
    return geometry, draw(st.integers(1, 18)) * group, draw(st.integers(1, 5)), size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prefix", PREFIXES)
@quick
@given(convolution=convolutions(), batch=st.integers(0, 3), layout=st.sampled_from([0, 2]), seed=seeds)
def test_convolution(prefix, mode, dtype, convolution, batch, layout, seed):
    geometry, N, channels, size = convolution
    positions, group = math.prod(geometry["kernel_shape"]), geometry["group"]
    K = channels * positions
    layer = random_layer(prefix, N, K, seed)
    held = layer if layout == 0 else tiled(layer, prefix, K, group, positions)
    x = activations((batch, channels * group, *size), seed)
    shape = ["batch", channels * group, *[f"s{i}" for i in range(len(size))]]
    attributes = {"N": N, "K": K, "layout": layout, **geometry}
    model = node_model(f"{prefix}Conv{mode}", held, shape, dtype=dtype, **attributes)
    native, portable = run(model, x), run(model, x, native=False)
    bound = K * np.abs(x).max(initial=0) * layer["scale"].max() + 3
    assert_same(mode, dtype, native, portable, bound)


@pytest.mark.parametrize("mode", MODES)
def test_the_sizes_of_real_layers(mode):
    N, K = 384, 1536
    layer = tiled(random_layer("Ternary", N, K, 0), "Ternary", K)
    model = node_model(f"TernaryMatMul{mode}", layer, ["rows", K], N=N, K=K, layout=1)
    native, portable = session_of(model), session_of(model, native=False)
    for rows in (1, 7, 8, 33, 200):
        x = activations((rows, K), rows)
        bound = np.abs(x).sum(-1).max() * layer["scale"].max()
        assert_same(mode, "float32", native.run(None, {"x": x})[0], portable.run(None, {"x": x})[0], bound)


def test_sums_that_int16_cannot_hold_are_exact():
    N, K = 16, 65536
    layer = tiled({"codes": np.full((N, K // 4), 0b10101010, np.uint8), **one_scale(N)}, "Ternary", K)
    model = node_model("TernaryMatMulInt8", layer, ["rows", K], N=N, K=K, layout=1)
    np.testing.assert_array_equal(run(model, np.full((9, K), 127, np.float32)), 127 * K)


def one_scale(N):
    return {"scale": np.ones(N, np.float32), "bias": np.zeros(N, np.float32)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("operator", ["TernaryMatMulInt8", "TernaryMatMulFloat"])
def test_a_row_that_holds_no_number_spoils_itself_alone(operator, bad):
    N, K = 20, 100
    layer = tiled(random_layer("Ternary", N, K, 0), "Ternary", K)
    model = node_model(operator, layer, ["rows", K], N=N, K=K, layout=1)
    x = activations((12, K), 0)
    clean = run(model, x)
    x[3, 77] = bad
    spoilt = run(model, x)
    others = np.arange(12) != 3
    np.testing.assert_array_equal(spoilt[others], clean[others])
    if operator.endswith("Int8"):
        assert np.isnan(spoilt[3]).all()
    else:
        with np.errstate(invalid="ignore"):
            expected = run(model, x, native=False)[3]
        np.testing.assert_array_equal(np.isnan(spoilt[3]), np.isnan(expected))
        np.testing.assert_allclose(spoilt[3], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("operator", ["TernaryMatMulInt8", "BinaryMatMulFloat"])
def test_codes_scale_and_bias_that_are_no_constants(operator):
    prefix, N, K = operator.split("MatMul")[0], 19, 70
    layer = tiled(random_layer(prefix, N, K, 1), prefix, K)
    attributes = {"N": N, "K": K, "layout": 1}
    x = activations((3, K), 0)
    constants = run(node_model(operator, layer, ["rows", K], **attributes), x)
    passed = run(node_model(operator, layer, ["rows", K], constant=False, **attributes), x, **layer)
    np.testing.assert_array_equal(passed, constants)


@pytest.mark.parametrize(
    ("operator", "shape", "expected", "geometry"),
    [
        ("TernaryMatMulInt8", ["batch", "sequence", 30], ["batch", "sequence", 20], {}),
        ("TernaryMatMulInt8", ["batch", 7, 30], ["batch", 7, 20], {}),
        ("TernaryConvInt8", ["batch", 10, 30], ["batch", 20, 15], {"pads": [1, 1]}),
        ("TernaryConvInt8", [4, 10, 31], [4, 20, 15], {"pads": [0, 0]}),
    ],
)
def test_sizes_and_names_of_dimensions_pass_through(operator, shape, expected, geometry):
    attributes = {"N": 20, "K": 30, "layout": 0}
    if geometry:
        attributes |= {"kernel_shape": [3], "strides": [2], "dilations": [1], "group": 1, **geometry}
    layer = random_layer("Ternary", 20, 30, 0)
    model = node_model(operator, layer, shape, body=False, **attributes)
    assert session_of(model).get_outputs()[0].shape == expected


def test_sizes_that_nobody_knows_stay_unknown():
    geometry = {"kernel_shape": [3], "strides": [2], "pads": [0, 0], "dilations": [1], "group": 1}
    layer = random_layer("Ternary", 20, 30, 0)
    model = node_model(
        "TernaryConvInt8", layer, ["batch", 10, None], body=False, N=20, K=30, layout=0, **geometry
    )
    batch, channels, size = session_of(model).get_outputs()[0].shape
    assert (batch, channels) == ("batch", 20)
    assert not isinstance(size, int)


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("mode", MODES)
def test_threads_change_nothing(mode, rows):
    N, K = 500, 300
    layer = tiled(random_layer("Ternary", N, K, 1), "Ternary", K)
    model = node_model(f"TernaryMatMul{mode}", layer, ["rows", K], N=N, K=K, layout=1)
    x = activations((rows, K), 0)
    np.testing.assert_array_equal(run(model, x, threads=3), run(model, x))
