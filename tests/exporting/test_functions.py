"""Every operator's body computes the arithmetic it documents, on stock runtimes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hybridkit.exporting import functions
from hybridkit.packing.codecs import codec
from hybridkit.packing.tiles import tile

OPSET = 18
BITS = {"Ternary": 2, "Binary": 1}
DATA = Path(__file__).parent / "data"
PREFIXES = {"Ternary": "two-bit", "Binary": "one-bit"}
quick = settings(max_examples=12, deadline=None)
runtimes = st.sampled_from([{}, {"inline": False}, {"optimise": False}])


def one_node_model(operator, weights, x_shape, x_type=TensorProto.FLOAT, opset=OPSET, **attributes):
    """A model of one node with `weights` (codes, scale, bias) as initializers and symbolic inputs."""
    names = functions.input_names(operator)
    initializers = [numpy_helper.from_array(w, n) for n, w in weights.items()]
    free = next(n for n in names if n not in weights)
    free_type = TensorProto.UINT8 if free == "codes" else x_type
    out_type = TensorProto.FLOAT if free == "codes" else x_type
    symbolic = [f"d{i}" for i in range(len(x_shape))]
    if free == "x" and "MatMul" in operator:
        symbolic[-1] = x_shape[-1]
    if free == "x" and "Conv" in operator:
        symbolic[1] = x_shape[1]
    node = helper.make_node(
        operator, list(names), ["y"], domain=functions.DOMAIN, **{"layout": 0, **attributes}
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(free, free_type, symbolic)],
        [helper.make_tensor_value_info("y", out_type, [f"o{i}" for i in range(len(x_shape))])],
        initializers,
    )
    imports = [
        helper.make_opsetid("", opset),
        helper.make_opsetid(functions.DOMAIN, functions.DOMAIN_VERSION),
    ]
    model = helper.make_model(
        graph, opset_imports=imports, functions=[functions.function(operator, opset)], ir_version=10
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return model


def run_ort(model, feed, *, inline=True, optimise=True):
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not inline:
        options.add_session_config_entry("session.disable_aot_function_inlining", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def random_codes(prefix, N, K, rng):
    if prefix in functions.DENSE:
        dense = codec(functions.DENSE[prefix])
        values = 243 if prefix == "Base3" else 256
        packed = rng.integers(0, values, (N, dense.row_bytes(K)), np.uint8)
        return dense.unpack(packed, K), packed
    levels = np.array(codec(PREFIXES[prefix]).levels, np.int8)
    codes = rng.choice(levels, (N, K))
    return codes, codec(PREFIXES[prefix]).pack(codes)


def int8_rows(x):
    """Codes and scale of each row of x [rows, K], by the formula, in float32."""
    largest = np.maximum(np.abs(x).max(axis=1, keepdims=True, initial=0), np.float32(1e-5))
    scale = largest / np.float32(127)
    return np.clip(np.rint(x / scale), -127, 127), scale


def expected_matmul(x, codes, scale, bias, mode):
    rows = x.reshape(-1, x.shape[-1])
    if mode == "Int8":
        integers, s_x = int8_rows(rows)
        exact = integers.astype(np.int64) @ codes.astype(np.int64).T
        y = exact.astype(np.float32) * (s_x * scale) + bias
    else:
        y = (rows.astype(np.float64) @ codes.T.astype(np.float64)) * scale + bias
    return y.reshape(*x.shape[:-1], len(codes))


@pytest.mark.parametrize(
    ("prefix", "mode"),
    [*itertools.product([*sorted(PREFIXES), "Sparse34"], ["Int8", "Float"]), ("Base3", "Int8")],
)
@quick
@example(K=1, N=1, lead=(), layout=0, runtime={"inline": True}, seed=0)
@example(K=1, N=1, lead=(), layout=1, runtime={"inline": True}, seed=0)
@example(K=777, N=3, lead=(2,), layout=0, runtime={"inline": False}, seed=1)
@example(K=777, N=33, lead=(2,), layout=1, runtime={"inline": False}, seed=1)
@example(K=4099, N=2, lead=(1, 2, 3), layout=1, runtime={"inline": True}, seed=2)
@given(
    K=st.integers(1, 70),
    N=st.integers(1, 40),
    lead=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    layout=st.sampled_from([0, 1]),
    runtime=runtimes,
    seed=st.integers(0, 2**31),
)
def test_matmul_body(prefix, mode, K, N, lead, layout, runtime, seed):
    rng = np.random.default_rng(seed)
    codes, packed = random_codes(prefix, N, K, rng)
    layout = 0 if prefix in functions.DENSE else layout
    scale = rng.uniform(0.01, 2, N).astype(np.float32)
    bias = rng.normal(size=N).astype(np.float32)
    x = (rng.normal(size=(*lead, K)) * 10.0 ** rng.integers(-7, 3)).astype(np.float32)
    stored = tile(packed, K, BITS[prefix]) if layout else packed
    weights = {"codes": stored, "scale": scale, "bias": bias}
    model = one_node_model(f"{prefix}MatMul{mode}", weights, x.shape, K=K, N=N, layout=layout)
    want = expected_matmul(x, codes, scale, bias, mode)
    for got in (run_ort(model, {"x": x}, **runtime), ReferenceEvaluator(model).run(None, {"x": x})[0]):
        assert got.dtype == np.float32
        if mode == "Int8":
            np.testing.assert_array_equal(got, want)
        else:
            tolerance = 1e-6 * np.abs(x).sum(-1).max() * scale.max() + 1e-6
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("mode", ["Int8", "Float"])
@pytest.mark.parametrize("prefix", sorted(PREFIXES))
@quick
@given(
    dims=st.integers(1, 2),
    channels=st.integers(1, 3),
    filters=st.sampled_from([1, 2, 3, 16, 17]),
    group=st.integers(1, 2),
    batch=st.integers(1, 3),
    layout=st.sampled_from([0, 2]),
    runtime=runtimes,
    data=st.data(),
)
def test_conv_body(prefix, mode, dims, channels, filters, group, batch, layout, runtime, data):
    def per_dim(low, high, count=dims):
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel, strides, dilations, pads = per_dim(1, 3), per_dim(1, 2), per_dim(1, 2), per_dim(0, 2, 2 * dims)
    space = [d * (k - 1) + extra for d, k, extra in zip(dilations, kernel, per_dim(1, 4), strict=True)]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    N, K = filters * group, channels * int(np.prod(kernel))
    codes, packed = random_codes(prefix, N, K, rng)
    scale = rng.uniform(0.01, 2, N).astype(np.float32)
    bias = rng.normal(size=N).astype(np.float32)
    x = rng.normal(size=(batch, channels * group, *space)).astype(np.float32)
    geometry = {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "group": group,
    }
    positions = int(np.prod(kernel))
    stored = tile(packed, K, BITS[prefix], group=group, positions=positions) if layout else packed
    weights = {"codes": stored, "scale": scale, "bias": bias}
    model = one_node_model(f"{prefix}Conv{mode}", weights, x.shape, K=K, N=N, layout=layout, **geometry)
    want = expected_conv(x, codes, scale, bias, mode, geometry)
    for got in (run_ort(model, {"x": x}, **runtime), ReferenceEvaluator(model).run(None, {"x": x})[0]):
        if mode == "Int8":
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def expected_conv(x, codes, scale, bias, mode, geometry):
    """Convolution by its definition, one output position after the other."""
    kernel, strides, dilations = geometry["kernel_shape"], geometry["strides"], geometry["dilations"]
    dims, group, N = len(kernel), geometry["group"], len(codes)
    channels = x.shape[1] // group
    weight = codes.reshape(N, channels, *kernel)
    if mode == "Int8":
        flat, s_x = int8_rows(x.reshape(len(x), -1))
        x, kind = flat.reshape(x.shape), np.int64
    else:
        s_x, kind = np.ones((len(x), 1), np.float32), np.float64
    begins, ends = geometry["pads"][:dims], geometry["pads"][dims:]
    padded = np.pad(x.astype(kind), [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    size = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, strides, strict=True)]
    total = np.zeros((len(x), N, *size), kind)
    for place in np.ndindex(*size):
        window = tuple(
            slice(p * s, p * s + r, d) for p, s, r, d in zip(place, strides, reach, dilations, strict=True)
        )
        for n in range(N):
            first = n // (N // group) * channels
            patch = padded[(slice(None), slice(first, first + channels), *window)]
            total[(slice(None), n, *place)] = (patch * weight[n].astype(kind)).reshape(len(x), -1).sum(1)
    spread = (slice(None), *[None] * dims)
    return (
        total.astype(np.float32 if mode == "Int8" else np.float64) * (s_x * scale)[(slice(None), *spread)]
        + bias[spread]
    )


@pytest.mark.parametrize("storage", functions.STORAGES.values(), ids=functions.STORAGES)
@quick
@example(K=1, lead=(1,), seed=0)
@example(K=777, lead=(3,), seed=1)
@given(
    K=st.integers(1, 40), lead=st.lists(st.integers(1, 4), max_size=3).map(tuple), seed=st.integers(0, 2**31)
)
def test_unpack_body(storage, K, lead, seed):
    rng = np.random.default_rng(seed)
    held = codec(storage.codec)
    codes = rng.choice(np.array(held.levels, np.int8), (int(np.prod(lead)), K))
    packed = held.pack(codes).reshape(*lead, -1)
    model = one_node_model(f"{storage.prefix}Unpack", {}, packed.shape, K=K)
    for got in (run_ort(model, {"codes": packed}), ReferenceEvaluator(model).run(None, {"codes": packed})[0]):
        np.testing.assert_array_equal(got, codes.reshape(*lead, K).astype(np.float32))


@pytest.mark.parametrize("operator", ["TernaryMatMulInt8", "BinaryMatMulFloat"])
@pytest.mark.parametrize("x_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_activations_keep_their_type(operator, x_type):
    rng = np.random.default_rng(3)
    prefix, mode = operator.split("MatMul")
    codes, packed = random_codes(prefix, 5, 33, rng)
    scale, bias = np.full(5, 0.5, np.float32), np.zeros(5, np.float32)
    x = rng.normal(size=(2, 33)).astype(helper.tensor_dtype_to_np_dtype(x_type))
    weights = {"codes": packed, "scale": scale, "bias": bias}
    model = one_node_model(operator, weights, x.shape, x_type, K=33, N=5)
    got = ReferenceEvaluator(model).run(None, {"x": x})[0]
    want = expected_matmul(x.astype(np.float32), codes, scale, bias, mode)
    assert got.dtype == x.dtype
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=1e-2, atol=1e-2)
    if x_type == TensorProto.FLOAT16:
        np.testing.assert_array_equal(run_ort(model, {"x": x}), got)


@pytest.mark.parametrize("opset", range(18, 24))
def test_bodies_follow_the_opset_of_the_model(opset):
    x = np.ones((2, 5), np.float32)
    codes = np.array([[1, 0, -1, 1, 1]], np.int8)
    weights = {
        "codes": codec("two-bit").pack(codes),
        "scale": np.ones(1, np.float32),
        "bias": np.zeros(1, np.float32),
    }
    model = one_node_model("TernaryMatMulInt8", weights, x.shape, opset=opset, K=5, N=1)
    np.testing.assert_array_equal(run_ort(model, {"x": x}), expected_matmul(x, codes, 1, 0, "Int8"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("K", [1, 3, 8, 33, 100])
@pytest.mark.parametrize("optimise", [True, False])
def test_a_row_that_holds_no_number_gives_nan_in_all_its_outputs(bad, K, optimise):
    rng = np.random.default_rng(K)
    codes, packed = random_codes("Ternary", 5, K, rng)
    codes[0], packed[0] = 0, codec("two-bit").pack(np.zeros((1, K), np.int8))
    weights = {"codes": packed, "scale": np.float32([0, 1, 1, 1, 1]), "bias": np.ones(5, np.float32)}
    model = one_node_model("TernaryMatMulInt8", weights, (3, K), K=K, N=5)
    x = rng.normal(size=(3, K)).astype(np.float32)
    x[1, K // 2] = bad
    good = expected_matmul(x[::2], codes, weights["scale"], weights["bias"], "Int8")
    for got in (run_ort(model, {"x": x}, optimise=optimise), reference(model, x)):
        assert np.isnan(got[1]).all()
        np.testing.assert_array_equal(got[::2], good)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [1, 4, 9])
@pytest.mark.parametrize("optimise", [True, False])
def test_a_sample_that_holds_no_number_gives_nan_in_all_its_outputs(bad, side, optimise):
    rng = np.random.default_rng(side)
    codes, packed = random_codes("Binary", 3, 2 * 9, rng)
    weights = {"codes": packed, "scale": np.float32([0, 1, 1]), "bias": np.ones(3, np.float32)}
    geometry = {
        "kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 1
    }  # fmt: skip
    model = one_node_model("BinaryConvInt8", weights, (3, 2, side, side), K=18, N=3, **geometry)
    x = rng.normal(size=(3, 2, side, side)).astype(np.float32)
    x[1, 1, side // 2, side - 1] = bad
    good = expected_conv(x[::2], codes, weights["scale"], weights["bias"], "Int8", geometry)
    for got in (run_ort(model, {"x": x}, optimise=optimise), reference(model, x)):
        assert np.isnan(got[1]).all()
        np.testing.assert_array_equal(got[::2], good)


def reference(model, x):
    with np.errstate(invalid="ignore"):
        return ReferenceEvaluator(model).run(None, {"x": x})[0]


def test_a_file_of_layout_0_that_carries_its_own_bodies_still_runs():
    """It was written before there were tiles."""
    model, example = onnx.load(DATA / "layout0.onnx"), np.load(DATA / "layout0.npz")
    assert "Clip" in {node.op_type for f in model.functions for node in f.node}
    for optimise in (True, False):
        got = run_ort(model, {"x": example["x"]}, optimise=optimise)
        np.testing.assert_allclose(got, example["y"], rtol=1e-6)
    for f in model.functions:
        f.CopyFrom(functions.function(f.name, OPSET))
    np.testing.assert_allclose(run_ort(model, {"x": example["x"]}), example["y"], rtol=1e-6)
