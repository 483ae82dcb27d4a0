"""Rows of codes that a product reads, too: our operator and its body in ONNX Runtime."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from ort_models import BITS, CODECS, OPSET, needs_library, random_layer, session_of

from hybridkit.exporting.functions import GATHER, function
from hybridkit.packing.codecs import codec
from hybridkit.packing.tiles import tile

PREFIXES = list(BITS)


def model_of(prefix, codes, N, K, layout, *, constant=True, product=None):
    """Rows x of the codes and, where `product` names one, its output for them."""
    operators = [prefix + GATHER]
    sizes = {"K": K, "N": N, "layout": layout}
    nodes = [
        helper.make_node(operators[0], ["x", "codes"], ["y"], domain="hybridkit", name="the_rows", **sizes)
    ]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(codes), "codes")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", K])]
    if product:
        operators.append(product)
        groups = {"group_size": -(-K // 16) * 16} if prefix.startswith("NBit") else {}
        inputs = ["y", "codes", "scale", "bias"]
        nodes.append(helper.make_node(product, inputs, ["z"], domain="hybridkit", **sizes, **groups))
        scale = np.ones((N, 1) if groups else N, np.float32)
        tensors += [
            numpy_helper.from_array(scale, "scale"),
            numpy_helper.from_array(np.zeros(N, np.float32), "bias"),
        ]
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", N]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])]
    if not constant:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    return helper.make_model(
        helper.make_graph(nodes, "rows", inputs, outputs, tensors if constant else []),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("hybridkit", 1)],
        functions=[function(operator, OPSET) for operator in operators],
        ir_version=9,
    )


def layer_of(prefix, N, K, tiles, seed=0):
    """Codes in one of the layouts, and what they are."""
    codes = random_layer(prefix, N, K, seed)["codes"]
    integers = codec(CODECS[prefix]).unpack(codes, K)
    return (tile(codes, K, BITS[prefix]) if tiles else codes), integers.astype(np.float32)


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_library), False])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_gives_the_rows(native, data):
    prefix, tiles = data.draw(st.sampled_from(PREFIXES)), data.draw(st.booleans())
    N, K = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    rows = np.array(data.draw(st.lists(st.integers(-N, N - 1), max_size=4)), np.int64)
    codes, expected = layer_of(prefix, N, K, tiles, seed=N)
    model = model_of(prefix, codes, N, K, int(tiles), constant=data.draw(st.booleans()))
    given = {"x": rows} if len(model.graph.input) == 1 else {"x": rows, "codes": codes}
    assert np.array_equal(session_of(model, native).run(["y"], given)[0], expected[rows])


@needs_library
def test_rows_of_any_shape():
    codes, expected = layer_of("NBit8", 20, 32, True)
    model = model_of("NBit8", codes, 20, 32, 1)
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for shape in ((), (2, 3), (1, 0)):
        rows = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        for native in (True, False):
            assert np.array_equal(session_of(model, native).run(None, {"x": rows})[0], expected[rows])


@needs_library
@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_product_reads_the_same_codes(prefix, tiles):
    N, K = 600, 1024  # more than what is read where the runtime has it
    codes, expected = layer_of(prefix, N, K, tiles)
    model = model_of(prefix, codes, N, K, int(tiles), product=f"{prefix}MatMulFloat")
    rows = np.array([0, 599, -1, 17], np.int64)
    y, z = session_of(model).run(None, {"x": rows})
    assert np.array_equal(y, expected[rows])
    np.testing.assert_allclose(z, expected[rows] @ expected.T, rtol=1e-5, atol=1e-3)


@needs_library
def test_sessions_of_other_codes_do_not_share_them():
    """One after the other, such that the runtime has them at the same address; and both at once."""
    kept = []
    for seed in range(6):
        codes, expected = layer_of("NBit8", 600, 1024, True, seed)
        found = session_of(model_of("NBit8", codes, 600, 1024, 1, product="NBit8MatMulFloat"))
        kept = [*kept, (found, expected)] if seed % 2 else []
        for each, right in [*kept, (found, expected)]:
            assert np.array_equal(each.run(["y"], {"x": np.array([seed, 599])})[0], right[[seed, 599]])


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_library)])
@pytest.mark.parametrize("row", [20, -21, 2**62])
def test_a_row_that_is_not_there_is_an_error(native, row):
    codes, _ = layer_of("NBit8", 20, 32, True)
    session = session_of(model_of("NBit8", codes, 20, 32, 1), native)
    with pytest.raises(
        Exception, match=r"hybridkit.NBit8Gather 'the_rows': the number of a row is out of range"
    ):
        session.run(None, {"x": np.array([0, row])})


@needs_library
def test_codes_of_another_size_are_an_error():
    codes, _ = layer_of("NBit8", 20, 32, True)
    with pytest.raises(Exception, match="must have 512 bytes"):
        session_of(model_of("NBit8", codes, 10, 32, 1))
