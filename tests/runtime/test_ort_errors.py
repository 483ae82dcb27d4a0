"""What does not fit together is refused with a message that names the layer, and never read."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ort_models import needs_library, node_model, options, random_layer, run, session_of, tiled

pytestmark = needs_library
N, K, CHANNELS = 20, 36, 12
MATMUL = {"N": N, "K": K, "layout": 1}
CONV = {"N": N, "K": K, "layout": 2, "group": 1}
CONV |= {"kernel_shape": [3], "strides": [1], "pads": [0, 0], "dilations": [1]}


def matmul_model(changes=None, attributes=None, shape=("rows", K)):
    layer = tiled(random_layer("Ternary", N, K, 0), "Ternary", K) | (changes or {})
    chosen = {k: v for k, v in {**MATMUL, **(attributes or {})}.items() if v is not None}
    return node_model("TernaryMatMulInt8", layer, shape, body=False, **chosen)


def conv_model(attributes=None, shape=("batch", CHANNELS, "size")):
    layer = tiled(random_layer("Ternary", N, K, 0), "Ternary", K, positions=3)
    chosen = {k: v for k, v in {**CONV, **(attributes or {})}.items() if v is not None}
    return node_model("TernaryConvInt8", layer, shape, body=False, **chosen)


def refusal(model, x=None, **others):
    """What ONNX Runtime says against making the session or against running it, if anything."""
    try:
        session = session_of(model)
        if x is not None:
            session.run(None, {"x": x, **others})
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        return str(error)
    return None


def error_of(model, x=None):
    message = refusal(model, x)
    assert message is not None
    return message


def test_the_models_are_right_before_they_are_broken():
    assert run(matmul_model(), np.ones((2, K), np.float32)).shape == (2, N)
    assert run(conv_model(), np.ones((2, CHANNELS, 5), np.float32)).shape == (2, N, 3)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"N": None}, "attribute N is missing"),
        ({"layout": None}, "attribute layout is missing"),
        ({"N": 0}, "attribute N must be from 1 to 2147483647, got 0"),
        ({"K": -5}, "attribute K must be from 1 to 4194304, got -5"),
        ({"K": 2**40}, "attribute K must be from 1 to 4194304, got 1099511627776"),
        ({"N": 2**31}, "attribute N must be from 1 to 2147483647, got 2147483648"),
        ({"K": 2**31}, "attribute K must be from 1 to 4194304, got 2147483648"),
        ({"N": 2**31 - 1}, "codes must have 25769803776 bytes (N = 2147483647, K = 36, layout 1), got 384"),
        ({"K": 2**22}, "x must have the shape [..., 4194304], got [?, 36]"),
        ({"N": "20"}, "attribute N is missing or has another type"),
        ({"K": 36.0}, "attribute K is missing or has another type"),
        ({"K": [36]}, "attribute K is missing or has another type"),
        ({"layout": 2}, "attribute layout must be 0 or 1, got 2"),
        (
            {"N": 33},
            "codes must have 576 bytes (N = 33, K = 36, layout 1), got 384 in the shape [2, 3, 16, 4]",
        ),
        ({"layout": 0}, "codes must have 180 bytes (N = 20, K = 36, layout 0), got 384"),
        ({"K": 70}, "x must have the shape [..., 70], got [?, 36]"),
    ],
)
def test_attributes(attributes, message):
    assert f"hybridkit.TernaryMatMulInt8 'the_layer': {message}" in error_of(
        matmul_model(attributes=attributes)
    )


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"group_size": None}, "attribute group_size is missing"),
        ({"group_size": 0}, "attribute group_size must be from 1 to 65536, got 0"),
        ({"group_size": 2**40}, "attribute group_size must be from 1 to 65536, got 1099511627776"),
        ({"group_size": 24}, "attribute group_size must be a multiple of 16, got 24"),
        ({"group_size": 16}, "scale must have the shape [20, 3], got [20, 2]"),
        ({"K": 32}, "codes must have 512 bytes (N = 20, K = 32, layout 1), got 768"),
    ],
)
def test_attributes_of_groups(attributes, message):
    layer = tiled(random_layer("NBit4", N, K, 0, 32), "NBit4", K)
    chosen = {**MATMUL, "group_size": 32, **attributes}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    shape = ("rows", chosen["K"])
    model = node_model("NBit4MatMulInt8", layer, shape, body=False, **chosen)
    assert f"hybridkit.NBit4MatMulInt8 'the_layer': {message}" in error_of(model)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"group": None}, "attribute group is missing"),
        ({"kernel_shape": None}, "attribute kernel_shape is missing"),
        ({"kernel_shape": [5]}, "attribute kernel_shape must divide K = 36, got [5]"),
        ({"kernel_shape": [0]}, "attribute kernel_shape must be from 1 to 2147483647, got 0"),
        ({"kernel_shape": [1] * 4}, "attribute kernel_shape must have 1 to 3 numbers, got 4"),
        ({"strides": [1, 1]}, "attribute strides must have 1 numbers, got [1, 1]"),
        ({"strides": [0]}, "attribute strides must be from 1 to 2147483647, got 0"),
        ({"pads": [1]}, "attribute pads must have 2 numbers, got [1]"),
        ({"pads": [0, -1]}, "attribute pads must be from 0 to 2147483647, got -1"),
        ({"pads": [2**62, 2**62]}, "attribute pads must be from 0 to 2147483647, got 4611686018427387904"),
        ({"group": 3}, "attribute group must divide N = 20, got 3"),
        ({"group": 2**31}, "attribute group must be from 1 to 2147483647, got 2147483648"),
        ({"dilations": [2**31]}, "attribute dilations must be from 1 to 2147483647, got 2147483648"),
        ({"kernel_shape": [2**31 - 1]}, "attribute kernel_shape must divide K = 36, got [2147483647]"),
        ({"kernel_shape": 3}, "attribute kernel_shape is missing, empty or has another type"),
        ({"strides": [1.0]}, "attribute strides is missing, empty or has another type"),
        ({"N": 2**31 - 1, "group": 2**31 - 1}, "x would have 25769803764 channels"),
        ({"layout": 1}, "attribute layout must be 0 or 2, got 1"),
        ({"group": 2}, "x must have the shape [batch, 24, size], got [?, 12, ?]"),
    ],
)
def test_attributes_of_convolutions(attributes, message):
    assert f"hybridkit.TernaryConvInt8 'the_layer': {message}" in error_of(conv_model(attributes))


def test_shapes_that_the_model_states():
    assert "x must have the shape [..., 36], got [?, 3, 35]" in error_of(matmul_model(shape=["rows", 3, 35]))
    assert "x must have the shape [batch, 12, size], got [?, 36]" in error_of(conv_model(shape=["batch", 36]))
    assert "the kernel is larger than the padded input" in error_of(conv_model(shape=["batch", CHANNELS, 2]))


def test_shapes_that_come_with_the_input():
    free = matmul_model(shape=["rows", "columns"])
    message = "hybridkit.TernaryMatMulInt8 'the_layer': x must have the shape [..., 36], got [2, 37]"
    assert message in error_of(free, np.ones((2, 37), np.float32))
    free = conv_model(shape=["batch", "channels", "size"])
    assert "x must have the shape [batch, 12, size], got [1, 13, 5]" in error_of(
        free, np.ones((1, 13, 5), np.float32)
    )
    assert "x of shape [1, 12, 2]: the kernel is larger" in error_of(free, np.ones((1, 12, 2), np.float32))


def test_padding_beyond_measure_is_refused_before_the_output_is_allocated():
    stated = conv_model({"pads": [2**31 - 1] * 2}, ["batch", CHANNELS, 5])
    assert "x of shape [?, 12, 5]: the padding makes the input too large" in error_of(stated)
    free = conv_model({"pads": [2**30] * 2})
    message = "x of shape [1, 12, 5]: the padding makes the input too large"
    assert message in error_of(free, np.ones((1, CHANNELS, 5), np.float32))


def unstated(model):
    """The model, its inputs of any shape: nothing can be refused before it runs."""
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"N": 2**31 - 1}, "codes must have 25769803776 bytes (N = 2147483647, K = 36, layout 1), got 384"),
        ({"K": 2**22, "N": 2**31 - 1}, "x must have the shape [..., 4194304], got"),
    ],
)
def test_codes_that_are_passed_bound_the_attributes(attributes, message, stated):
    """The output of 2^31 rows is not allocated first."""
    layer = tiled(random_layer("Ternary", N, K, 0), "Ternary", K)
    chosen = MATMUL | attributes
    model = node_model("TernaryMatMulInt8", layer, ["rows", K], body=False, constant=False, **chosen)
    session = None if stated else session_of(unstated(model))
    with pytest.raises(Exception, match=r"hybridkit\.TernaryMatMulInt8 'the_layer'") as caught:
        session_of(model) if stated else session.run(None, {"x": np.ones((3, K), np.float32), **layer})
    assert message in str(caught.value)


@pytest.mark.parametrize("operator", ["TernaryConvInt8", "BinaryConvFloat"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(1, CHANNELS, 0), (0, CHANNELS, 4), (0, CHANNELS, 0)])
def test_empty_inputs(operator, dtype, shape):
    """Padding alone makes the bias; no samples make none."""
    prefix = operator.split("Conv")[0]
    layer = tiled(random_layer(prefix, N, K, 0), prefix, K, positions=3)
    attributes = CONV | {"pads": [2, 2]}
    model = node_model(operator, layer, ["batch", CHANNELS, "size"], body=False, dtype=dtype, **attributes)
    y = run(model, np.ones(shape, np.float32))
    assert y.shape == (shape[0], N, shape[2] + 2)
    if not shape[2]:
        np.testing.assert_array_equal(y, np.broadcast_to(layer["bias"].astype(dtype)[:, None], y.shape))


@pytest.mark.parametrize("name", ["scale", "bias"])
@pytest.mark.parametrize("shape", [(N - 1,), (1,), (), (N, 1), (0,)])
def test_scale_and_bias_of_another_shape(name, shape):
    text = str(list(shape))
    message = f"hybridkit.TernaryMatMulInt8 'the_layer': {name} must have the shape [20], got {text}"
    assert message in error_of(matmul_model({name: np.ones(shape, np.float32)}))


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "digit 3"])
def test_damaged_codes(damage, constant):
    layer = tiled(random_layer("Ternary", N, K, 0), "Ternary", K)
    whole = layer["codes"].ravel()
    damaged = {
        "truncated": whole[:-1],
        "longer": np.append(whole, whole[:64]),
        "empty": whole[:0],
        "digit 3": whole | 192,
    }
    layer["codes"] = damaged[damage]
    model = node_model("TernaryMatMulInt8", layer, ["rows", K], body=False, constant=constant, **MATMUL)
    with pytest.raises(Exception, match=r"hybridkit\.TernaryMatMulInt8 'the_layer': .*codes") as caught:
        run(model, np.ones((2, K), np.float32), **({} if constant else layer))
    assert ("invalid ternary digit" in str(caught.value)) == (damage == "digit 3")


def test_external_data_that_was_cut_off(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(matmul_model(), path, save_as_external_data=True, location="model.data", size_threshold=100)
    onnxruntime.InferenceSession(path, options(), ["CPUExecutionProvider"])
    data = tmp_path / "model.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(Exception, match="file_length: 100"):
        onnxruntime.InferenceSession(path, options(), ["CPUExecutionProvider"])


edges = [2**22, 2**22 + 1, 2**31 - 1, 2**31, 2**31 + 1, 2**40, 2**62, -(2**63), 2**63 - 1]
numbers = st.one_of(st.integers(-2, 40), st.sampled_from(edges))
lists = st.lists(numbers, min_size=1, max_size=9)
pairs = st.lists(numbers, min_size=2, max_size=2)
others = st.sampled_from(["3", b"3", 3.0, [3.0], ["3"], [2.0**40, -1.0]])
VALUES = {
    "N": numbers | others,
    "K": numbers | others,
    "layout": numbers | others,
    "group": numbers | lists | others,
    "kernel_shape": numbers.map(lambda n: [n]) | lists | others,
    "strides": numbers.map(lambda n: [n]) | lists | others,
    "pads": pairs | lists | others,
    "dilations": numbers.map(lambda n: [n]) | lists | others,
}


@st.composite
def attribute_sets(draw):
    """Those of a good convolution, some of them replaced, seldom one left out."""
    changed = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4, unique=True))
    attributes = CONV | {name: draw(VALUES[name]) for name in changed}
    if draw(st.integers(0, 19)) == 0:
        del attributes[draw(st.sampled_from(sorted(attributes)))]
    return attributes


good_shapes = st.tuples(st.integers(0, 3), st.just(CHANNELS), st.integers(0, 9))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    attributes=attribute_sets(),
    constant=st.booleans(),
    shape=good_shapes | st.lists(st.integers(0, 6), max_size=6),
    size=st.none() | st.integers(0, 600),
    seed=st.integers(0, 2**31),
)
def test_random_attributes_shapes_and_codes_are_run_or_refused(attributes, constant, shape, size, seed):
    rng = np.random.default_rng(seed)
    layer = tiled(random_layer("Ternary", N, K, 0), "Ternary", K, positions=3)
    if size is not None:
        layer["codes"] = rng.integers(0, 256, size, dtype=np.uint8) & 0x55
    model = node_model("TernaryConvFloat", layer, None, body=False, constant=constant, **attributes)
    message = refusal(model, rng.normal(size=shape).astype(np.float32), **({} if constant else layer))
    assert message is None or message.count("hybridkit.TernaryConvFloat 'the_layer': ") == 1
