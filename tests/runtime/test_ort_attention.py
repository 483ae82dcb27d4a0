"""Attention with a cache, in ONNX Runtime, against its definition in NumPy: our operator and its body."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from ort_models import needs_library, options, session_of

from hybridkit.exporting.functions import CACHED_ATTENTION, function, input_names

OPSET = 18
VERSION = tuple(int(number) for number in onnxruntime.__version__.split(".")[:2])
# older ones have no such operator on the CPU, or none with all attributes, or one with another window
has_body = pytest.mark.skipif(VERSION < (1, 24), reason="an ONNX Runtime whose GroupQueryAttention is older")


def model_of(heads, kv_heads, *, scale=0.5, softcap=0.0, window=-1):
    names = input_names(CACHED_ATTENTION)
    outputs = ["y", "present_key", "present_value"]
    attributes = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": scale,
        "softcap": softcap,
        "local_window_size": window,
    }
    node = helper.make_node(CACHED_ATTENTION, names, outputs, domain="hybridkit", name="it", **attributes)
    inputs = [
        *(helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", "s", f"{n}_d"]) for n in names[:3]),
        *(helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", kv_heads, "p", "d"]) for n in names[3:5]),
        helper.make_tensor_value_info("last", TensorProto.INT32, ["b"]),
        helper.make_tensor_value_info("total", TensorProto.INT32, []),
    ]
    shapes = [["b", "s", "y_d"], ["b", kv_heads, "t", "d"], ["b", kv_heads, "t", "d"]]
    given = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(outputs, shapes, strict=True)
    ]
    return helper.make_model(
        helper.make_graph([node], "g", inputs, given),
        functions=[function(CACHED_ATTENTION, OPSET)],
        opset_imports=[
            helper.make_opsetid("", OPSET),
            helper.make_opsetid("hybridkit", 1),
            helper.make_opsetid("com.microsoft", 1),
        ],
        ir_version=8,
    )


def feed_of(rng, tokens, pasts, heads, kv_heads, size):
    """Of samples with so many tokens each before the new ones."""

    def numbers(*shape):
        return rng.normal(size=shape).astype(np.float32)

    batch = len(pasts)
    return {
        "query": numbers(batch, tokens, heads * size),
        "key": numbers(batch, tokens, kv_heads * size),
        "value": numbers(batch, tokens, kv_heads * size),
        "past_key": numbers(batch, kv_heads, max(pasts), size),
        "past_value": numbers(batch, kv_heads, max(pasts), size),
        "last": np.array([past + tokens - 1 for past in pasts], np.int32),
        "total": np.array(max(pasts) + tokens, np.int32),
    }


def expected(feed, pasts, kv_heads, scale, softcap, window):
    """The definition, one query after the other: y, and keys and values of each sample."""
    batch, tokens, width = feed["query"].shape
    size = feed["past_key"].shape[3]
    y, caches = np.zeros((batch, tokens, width), np.float32), []
    for sample, past in enumerate(pasts):
        key, value = (
            np.concatenate(
                [
                    feed[f"past_{part}"][sample, :, :past],
                    feed[part][sample].reshape(tokens, kv_heads, size).transpose(1, 0, 2),
                ],
                axis=1,
            ).astype(np.float64)
            for part in ("key", "value")
        )
        caches.append((key, value))
        queries = feed["query"][sample].reshape(tokens, -1, size).astype(np.float64)
        for token in range(tokens):
            place = past + token
            seen = slice(0 if window < 0 else max(place - window + 1, 0), place + 1)
            for head in range(width // size):
                shared = head // (width // size // kv_heads)
                scores = key[shared, seen] @ queries[token, head] * scale
                scores = softcap * np.tanh(scores / softcap) if softcap else scores
                shares = np.exp(scores - scores.max())
                found = shares @ value[shared, seen] / shares.sum()
                y[sample, token, head * size : (head + 1) * size] = found
    return y, caches


def compare(session, feed, pasts, kv_heads, scale=0.5, softcap=0.0, window=-1):
    y, *present = session.run(None, feed)
    wanted, caches = expected(feed, pasts, kv_heads, scale, softcap, window)
    np.testing.assert_allclose(y, wanted, rtol=2e-4, atol=2e-5)
    for sample, kept in enumerate(caches):
        for found, cache in zip(present, kept, strict=True):
            np.testing.assert_array_equal(found[sample, :, : cache.shape[1]], cache.astype(np.float32))


CASES = st.tuples(
    st.integers(1, 70),  # tokens
    st.lists(st.integers(0, 90), min_size=1, max_size=2),  # pasts
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([8, 16, 24, 64, 72, 128]),
    st.sampled_from([0.0, 2.0]),
    st.sampled_from([-1, 1, 5, 64]),
    st.integers(0, 2**32 - 1),
)


def check(case, native):
    tokens, pasts, kv_heads, repeats, size, softcap, window, seed = case
    if 0 in pasts:
        pasts = [0] * len(pasts)  # a sample without a past is at its first prompt, as all are then
    heads = kv_heads * repeats
    feed = feed_of(np.random.default_rng(seed), tokens, pasts, heads, kv_heads, size)
    model = model_of(heads, kv_heads, softcap=softcap, window=window)
    compare(session_of(model, native=native), feed, pasts, kv_heads, softcap=softcap, window=window)


@needs_library
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CASES)
def test_the_operator_is_its_definition(case):
    check(case, native=True)


@has_body
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CASES)
def test_the_body_is_its_definition(case):
    tokens, pasts, *others = case
    if tokens > 1 and all(pasts):  # several tokens behind a past are those of one sample there
        pasts = pasts[:1]
    check((tokens, pasts, *others), native=False)


@needs_library
@pytest.mark.parametrize("threads", [1, 2])
def test_new_keys_go_into_the_buffer_of_the_old_ones(threads):
    rng = np.random.default_rng(0)
    feed = feed_of(rng, 3, [20], 4, 2, 16)
    room = {part: np.zeros((1, 2, 40, 16), np.float32) for part in ("key", "value")}
    for part, buffer in room.items():
        buffer[:, :, :20] = feed[f"past_{part}"]
    session = onnxruntime.InferenceSession(
        model_of(4, 2).SerializeToString(), options(threads=threads), providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name in ("query", "key", "value", "last", "total"):
        binding.bind_cpu_input(name, feed[name])
    for part, buffer in room.items():
        shared = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
        binding.bind_ortvalue_input(f"past_{part}", shared)
        binding.bind_ortvalue_output(f"present_{part}", shared)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    y, [(key, value)] = expected(feed, [20], 2, 0.5, 0.0, -1)
    np.testing.assert_allclose(binding.get_outputs()[-1].numpy(), y, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(room["key"][0, :, :23], key.astype(np.float32))
    np.testing.assert_array_equal(room["value"][0, :, :23], value.astype(np.float32))
    assert not room["key"][:, :, 23:].any()


@needs_library
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": (1, 3, 63)}, "query must have the shape [batch, tokens, 4 heads], got [1, 3, 63]"),
        ({"key": (1, 2, 32)}, "key must have the shape [1, 3, 32], got [1, 2, 32]"),
        ({"past_value": (1, 2, 20, 8)}, "past_value must have the shape [1, 2, 20, 16], got [1, 2, 20, 8]"),
        ({"total": 2}, "total is less than the new tokens"),
        ({"total": 24, "last": 60}, "last does not fit the past and the new tokens"),
        ({"last": 1}, "last does not fit the past and the new tokens"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    feed = feed_of(np.random.default_rng(0), 3, [20], 4, 2, 16)
    for name, value in changes.items():
        whole = isinstance(value, int)
        feed[name] = np.full(feed[name].shape, value, np.int32) if whole else np.zeros(value, np.float32)
    with pytest.raises(Exception, match="CachedAttention 'it'") as raised:
        session_of(model_of(4, 2)).run(None, feed)
    assert message in str(raised.value)


@needs_library
def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(Exception, match="num_heads must be a multiple of kv_num_heads"):
        session_of(model_of(3, 2))
