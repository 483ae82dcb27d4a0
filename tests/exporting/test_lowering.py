"""Each rewriting of a packed layer computes what the packed layer computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hybridkit.exporting import functions, lowering
from hybridkit.exporting.assembly import assemble, tidy
from hybridkit.exporting.folding import fold_batch_normalization
from hybridkit.exporting.layout import make_row_major
from hybridkit.exporting.matmulnbits import MatMulNBitsExporter
from hybridkit.packing.codecs import codec
from hybridkit.runtime import arithmetic

OPSET = 18
KINDS = {prefix: storage.codec for prefix, storage in functions.STORAGES.items()}
quick = settings(max_examples=15, deadline=None)
prefixes = st.sampled_from(sorted(KINDS))
nbit_prefixes = st.sampled_from(["NBit1", "NBit2", "NBit4", "NBit8"])
seeds = st.integers(0, 2**31)


class Layer:
    """Random weights of one packed layer, its graph before lowering, and what it computes."""

    def __init__(self, prefix, N, K, group_size, seed, offset=False):
        rng = np.random.default_rng(seed)
        self.prefix, self.N, self.K, self.group_size = prefix, N, K, group_size
        self.codes = rng.choice(np.array(codec(KINDS[prefix]).levels, np.int8), (N, K))
        shape = (N, -(-K // group_size)) if group_size else (N,)
        self.scale = rng.uniform(0.05, 1, shape).astype(np.float32)
        self.bias = rng.normal(size=N).astype(np.float32)
        self.nbit = prefix.startswith("NBit")
        self.offset = rng.normal(size=shape if offset and self.nbit else 0).astype(np.float32)

    def graph(self, kind, x_shape, y_rank, after=(), x_type=TensorProto.FLOAT, **attributes):
        """An onnx_ir model of the layer alone, as translation writes it, then nodes `after` it."""
        stem = "NBit" if self.nbit else self.prefix
        if self.nbit:
            attributes |= {"bits": int(self.prefix[-1]), "group_size": self.group_size}
        else:
            attributes |= {"layout": 0}
        names = ["x", "l.codes", "l.scale"] + (["l.bias"] if "Embedding" not in kind else [])
        names += ["l.offset"] if len(self.offset) else []
        last = after[-1].output[0] if after else "y"
        node = helper.make_node(
            stem + kind, names, ["y"], domain=functions.DOMAIN, K=self.K, N=self.N, **attributes
        )
        arrays = {
            "l.codes": codec(KINDS[self.prefix]).pack(self.codes),
            "l.scale": self.scale,
            "l.bias": self.bias,
            "l.offset": self.offset,
        }
        y_type = TensorProto.FLOAT if "Embedding" in kind else x_type
        graph = helper.make_graph(
            [node, *after],
            "one",
            [helper.make_tensor_value_info("x", x_type, list(x_shape))],
            [helper.make_tensor_value_info(last, y_type, [f"y{i}" for i in range(y_rank)])],
            [numpy_helper.from_array(arrays[name], name) for name in names[1:]],
        )
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(functions.DOMAIN, 1)]
        return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))

    def matmul(self, x, mode):
        return arithmetic.matmul(*self._tensors(x), mode).numpy()

    def conv(self, x, mode, geometry):
        return arithmetic.conv(*self._tensors(x), mode, arithmetic.Geometry(**geometry)).numpy()

    def _tensors(self, x):
        x, codes, scale, offset, bias = (
            torch.from_numpy(a)
            for a in (x, self.codes.astype(np.float32), self.scale, self.offset, self.bias)
        )
        return x, codes, arithmetic.Numbers(scale, offset if len(offset) else None, self.group_size), bias

    def dequantized(self):
        def spread(numbers):
            if not self.group_size:
                return numbers[:, None]
            return np.repeat(numbers, self.group_size, 1)[:, : self.K]

        return self.codes * spread(self.scale) + (spread(self.offset) if len(self.offset) else 0)


def run(model, x, *, inline=False):
    assemble(model, OPSET, inline=inline)
    tidy(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0], proto


def random_x(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def within_rounding(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * (np.abs(want).max() + 1))


def close(got, want, layer, x, int8):
    """Equal where int8 sums are exact (below 2^24), else to float32 rounding."""
    largest = 1 << (int(layer.prefix[-1]) - 1 if layer.nbit else 0)
    exact = int8 and not len(layer.offset)
    if exact and (layer.group_size or layer.K) * 127 * largest < 2**24:
        np.testing.assert_array_equal(got, want)
    else:
        within_rounding(got, want)


@quick
@example(prefix="NBit4", K=1, N=1, lead=(1,), group_size=0, int8=True, offset=False, seed=0)
@example(prefix="NBit2", K=777, N=3, lead=(2, 3), group_size=0, int8=True, offset=True, seed=1)
@example(prefix="NBit8", K=300, N=3, lead=(), group_size=32, int8=False, offset=False, seed=2)
@example(prefix="NBit4", K=50, N=2, lead=(2,), group_size=24, int8=True, offset=True, seed=3)
@given(
    prefix=nbit_prefixes,
    K=st.integers(1, 200),
    N=st.integers(1, 9),
    lead=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    group_size=st.sampled_from([0, 5, 16, 64]),
    int8=st.booleans(),
    offset=st.booleans(),
    seed=seeds,
)
def test_stock_nbit_matmul(prefix, K, N, lead, group_size, int8, offset, seed):
    layer = Layer(prefix, N, K, group_size, seed, offset)
    x = random_x((*lead, K), seed)
    model = layer.graph("MatMulInt8" if int8 else "MatMulFloat", x.shape, x.ndim)
    lowering.portable(model, lowering.Products(stock=True))
    got, proto = run(model, x)
    within_rounding(got, layer.matmul(x, "int8" if int8 else "float"))
    on_blocks = group_size in (0, 16, 32, 64)
    assert any(n.op_type == "MatMulNBits" for n in proto.graph.node) == on_blocks
    held = max(a.nbytes for a in map(numpy_helper.to_array, proto.graph.initializer))
    bits = max(int(prefix[-1]), 2)  # MatMulNBits has no less
    block = group_size if on_blocks and group_size else 128
    assert held <= max(N * -(-K // block) * max(block * bits // 8, 4), K * 8)


@quick
@example(prefix="NBit4", K=1, N=1, lead=(1,), group_size=0, int8=True, offset=False, seed=0)
@example(prefix="NBit2", K=777, N=3, lead=(2, 3), group_size=48, int8=True, offset=False, seed=1)
@example(prefix="NBit8", K=300, N=3, lead=(), group_size=32, int8=False, offset=True, seed=2)
@example(prefix="NBit1", K=1, N=4, lead=(), group_size=16, int8=True, offset=False, seed=0)
@example(prefix="NBit1", K=1, N=1, lead=(), group_size=16, int8=False, offset=False, seed=0)
@given(
    prefix=nbit_prefixes,
    K=st.integers(1, 200),
    N=st.integers(1, 40),
    lead=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    group_size=st.sampled_from([0, 16, 48, 64]),
    int8=st.booleans(),
    offset=st.booleans(),
    seed=seeds,
)
def test_nbit_operator(prefix, K, N, lead, group_size, int8, offset, seed):
    layer = Layer(prefix, N, K, group_size, seed, offset)
    x = random_x((*lead, K), seed)
    model = layer.graph("MatMulInt8" if int8 else "MatMulFloat", x.shape, x.ndim)
    lowering.portable(model)
    got, proto = run(model, x)
    too_fine = prefix == "NBit1" and group_size % 32  # its operators take whole words of codes
    close(got, layer.matmul(x, "int8" if int8 else "float"), layer, x, int8 and not too_fine)
    ours = {n.op_type for n in proto.graph.node if n.domain == functions.DOMAIN}
    if too_fine or (int8 and offset):  # offsets meet rounded activations
        assert ours <= {f"{prefix}Unpack"}  # beside MatMulNBits, or for an unpacked matrix
    else:
        assert ours == {f"{prefix}MatMul{'Int8' if int8 else 'Float'}"}


@quick
@given(
    prefix=nbit_prefixes,
    K=st.integers(1, 600),
    group_size=st.sampled_from([0, 32, 256, 304]),
    offset=st.booleans(),
    seed=seeds,
)
def test_nbit_operator_that_rounds_activations_in_blocks(prefix, K, group_size, offset, seed):
    layer = Layer(prefix, 5, K, group_size, seed, offset)
    x = random_x((3, K), seed)
    x[:, 0] *= 1000  # spoils its own block
    model = layer.graph("MatMulFloat", x.shape, 2)
    lowering.portable(model, lowering.Products(lowering.INT8))
    got, _ = run(model, x)
    spoiled, others = np.abs(x[:, :304]).max(), np.abs(x[:, 304:]).max(initial=0)
    unit = (np.sqrt(304) * spoiled + np.sqrt(K) * others) / 254
    largest = np.abs(layer.dequantized()).max()
    np.testing.assert_allclose(got, layer.matmul(x, "float"), rtol=0, atol=8 * unit * largest)


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("prefix", ["NBit1", "NBit2", "NBit4", "NBit8"])
def test_nbit_operators_of_a_file_are_written_again(prefix, group_size, int8):
    layer = Layer(prefix, 20, 72, group_size, seed=3)
    x = random_x((3, 72), 3)
    model = layer.graph("MatMulInt8" if int8 else "MatMulFloat", x.shape, 2)
    lowering.portable(model)
    _, proto = run(model, x)
    want = x @ layer.dequantized().T + layer.bias
    rounding = 0.02 * np.abs(x).max() * np.linalg.norm(layer.dequantized(), axis=1).max()
    for lower in (MatMulNBitsExporter().lower, lowering.full_precision):
        again = ir.from_proto(proto)
        make_row_major(again)
        lower(again)
        got, written = run(again, x, inline=True)
        assert {n.domain for n in written.graph.node} <= {"", lowering.MICROSOFT}
        np.testing.assert_allclose(got, want, rtol=0, atol=rounding)


@quick
@given(
    prefix=nbit_prefixes,
    dims=st.integers(1, 2),
    channels=st.integers(1, 3),
    group=st.integers(1, 2),
    group_size=st.sampled_from([0, 3, 16]),
    int8=st.booleans(),
    offset=st.booleans(),
    seed=seeds,
    data=st.data(),
)
def test_portable_nbit_conv(prefix, dims, channels, group, group_size, int8, offset, seed, data):
    geometry = random_geometry(data, dims, group)
    K = channels * int(np.prod(geometry["kernel_shape"]))
    layer = Layer(prefix, 2 * group, K, group_size, seed, offset)
    x = random_x((2, channels * group, *[7] * dims), seed)
    model = layer.graph("ConvInt8" if int8 else "ConvFloat", x.shape, x.ndim, **geometry)
    lowering.portable(model)
    got, proto = run(model, x)
    close(got, layer.conv(x, "int8" if int8 else "float", geometry), layer, x, int8 and not group_size)
    assert [f.name for f in proto.functions] == [f"{prefix}Unpack"]


def random_geometry(data, dims, group):
    def draw(low, high, count):
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    return {
        "kernel_shape": draw(1, 3, dims),
        "strides": draw(1, 2, dims),
        "pads": draw(0, 2, 2 * dims),
        "dilations": draw(1, 2, dims),
        "group": group,
    }


@quick
@given(
    prefix=prefixes,
    entries=st.integers(1, 20),
    width=st.integers(1, 40),
    lead=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    group_size=st.sampled_from([0, 4, 16]),
    stock=st.booleans(),
    offset=st.booleans(),
    seed=seeds,
)
def test_embedding(prefix, entries, width, lead, group_size, stock, offset, seed):
    layer = Layer(prefix, entries, width, group_size if prefix.startswith("NBit") else 0, seed, offset)
    indices = np.random.default_rng(seed).integers(0, entries, lead)
    model = layer.graph("Embedding", lead, len(lead) + 1, x_type=TensorProto.INT64)
    lowering.portable(model)
    got, proto = run(model, indices, inline=stock)
    np.testing.assert_array_equal(got, layer.dequantized()[indices].astype(np.float32))
    assert {n.domain for n in proto.graph.node} == ({""} if stock else {"", functions.DOMAIN})


@pytest.mark.parametrize("level", [1, 4])
@quick
@example(prefix="Ternary", K=777, N=3, group_size=0, block_size=128, int8=True, offset=False, seed=0)
@given(
    prefix=prefixes,
    K=st.integers(1, 300),
    N=st.integers(1, 9),
    group_size=st.sampled_from([0, 5, 16, 64]),
    block_size=st.sampled_from([32, 64, 128]),
    int8=st.booleans(),
    offset=st.booleans(),
    seed=seeds,
)
def test_stock_matmul(level, prefix, K, N, group_size, block_size, int8, offset, seed):
    layer = Layer(prefix, N, K, group_size if prefix.startswith("NBit") else 0, seed, offset)
    x = random_x((3, K), seed)
    model = layer.graph("MatMulInt8" if int8 else "MatMulFloat", x.shape, 2)
    options = MatMulNBitsExporter.Options(accuracy_level=level, block_size=block_size)
    MatMulNBitsExporter(options).lower(model)
    got, proto = run(model, x, inline=True)
    want = x @ layer.dequantized().T + layer.bias
    unit = np.abs(x).max() * np.linalg.norm(layer.dequantized(), axis=1).max()
    unrounded = level == 1 and (not int8 or layer.group_size in (0, 16, 64))
    np.testing.assert_allclose(got, want, atol=1e-6 + unit * (1e-5 if unrounded else 0.02), rtol=0)
    assert not proto.functions
    assert {n.domain for n in proto.graph.node} <= {"", lowering.MICROSOFT}


@quick
@given(prefix=prefixes, kind=st.sampled_from(["MatMul", "Conv", "Embedding"]), seed=seeds)
def test_full_precision(prefix, kind, seed):
    layer = Layer(prefix, 4, 18, 0, seed)
    weight = layer.dequantized().astype(np.float32)
    geometry = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 1}
    if kind == "Embedding":
        x = np.array([3, 0, 1])
        model, want = layer.graph(kind, x.shape, 2, x_type=TensorProto.INT64), weight[x]
    elif kind == "MatMul":
        x = random_x((5, 18), seed)
        model, want = layer.graph("MatMulInt8", x.shape, 2), x @ weight.T + layer.bias
    else:
        x = random_x((1, 2, 6, 6), seed)
        model = layer.graph("ConvInt8", x.shape, 4, **geometry)
        kernels = torch.from_numpy(weight.reshape(4, 2, 3, 3))
        want = torch.conv2d(torch.from_numpy(x), kernels, torch.from_numpy(layer.bias), padding=1).numpy()
    lowering.full_precision(model)
    got, proto = run(model, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert {n.domain for n in proto.graph.node} == {""}


@pytest.mark.parametrize("prefix", ["Ternary", "NBit4"])
def test_half_precision_activations(prefix):
    layer = Layer(prefix, 3, 40, 0, seed=5)
    x = random_x((2, 40), 5).astype(np.float16)
    for lower in (lowering.portable, MatMulNBitsExporter().lower, lowering.full_precision):
        model = layer.graph("MatMulFloat", x.shape, 2, x_type=TensorProto.FLOAT16)
        lower(model)
        got, _ = run(model, x, inline=lower is not lowering.portable)
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, layer.matmul(x.astype(np.float32), "float"), atol=0.3)


def batch_norm(N, seed, source="y"):
    rng = np.random.default_rng(seed)
    arrays = {
        "gamma": rng.normal(size=N),
        "beta": rng.normal(size=N),
        "mean": rng.normal(size=N),
        "var": rng.uniform(0.1, 2, N),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return helper.make_node("BatchNormalization", [source, *arrays], ["z"], epsilon=1e-3), arrays


def with_initializers(model, arrays):
    """The model again, its free inputs `arrays` bound to their values."""
    for name, array in arrays.items():
        old = next(v for n in model.graph for v in n.inputs if v is not None and v.name == name)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        model.graph.register_initializer(value)
        ir.convenience.replace_all_uses_with(old, value)
    return model


@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
@quick
@given(prefix=prefixes, int8=st.booleans(), grouped=st.booleans(), seed=seeds)
def test_batch_normalization_is_folded(kind, prefix, int8, grouped, seed):
    layer = Layer(prefix, 4, 18, 16 if grouped and prefix.startswith("NBit") else 0, seed)
    node, arrays = batch_norm(4, seed)
    mode = "Int8" if int8 else "Float"
    geometry = {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 1}
    x = random_x((3, 18) if kind == "MatMul" else (3, 2, 6, 6), seed)
    model = layer.graph(kind + mode, x.shape, x.ndim, [node], **(geometry if kind == "Conv" else {}))
    model.graph.node(0).outputs[0].shape = ir.Shape(["b"] * x.ndim)
    with_initializers(model, arrays)
    assert fold_batch_normalization(model) == 1
    lowering.portable(model)
    got, proto = run(model, x)
    y = layer.matmul(x, mode.lower()) if kind == "MatMul" else layer.conv(x, mode.lower(), geometry)
    line = (slice(None), *[None] * (x.ndim - 2))
    want = (y - arrays["mean"][line]) / np.sqrt(arrays["var"] + 1e-3)[line] * arrays["gamma"][line]
    want = want + arrays["beta"][line]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert not any(n.op_type == "BatchNormalization" for n in proto.graph.node)


def test_batch_normalization_stays_where_the_layer_has_other_readers():
    layer = Layer("Ternary", 4, 18, 0, seed=0)
    node, arrays = batch_norm(4, seed=0)
    add = helper.make_node("Add", ["z", "y"], ["sum"])
    x = random_x((3, 18), 0)
    model = layer.graph("MatMulFloat", x.shape, 2, [node, add])
    model.graph.node(0).outputs[0].shape = ir.Shape(["b", 4])
    with_initializers(model, arrays)
    assert fold_batch_normalization(model) == 0
    got, _ = run(model, x)
    y = layer.matmul(x, "float")
    normal = (y - arrays["mean"]) / np.sqrt(arrays["var"] + 1e-3) * arrays["gamma"] + arrays["beta"]
    np.testing.assert_allclose(got, normal + y, rtol=1e-4, atol=1e-4)


def test_batch_normalization_over_another_axis_stays():
    layer = Layer("Ternary", 4, 18, 0, seed=0)
    node, arrays = batch_norm(7, seed=0)
    model = layer.graph("MatMulFloat", (2, 7, 18), 3, [node])
    model.graph.node(0).outputs[0].shape = ir.Shape([2, 7, 4])
    with_initializers(model, arrays)
    assert fold_batch_normalization(model) == 0


def test_equal_tensors_are_stored_once():
    layer = Layer("Ternary", 4, 18, 0, seed=0)
    model = layer.graph("MatMulFloat", ("b", 18), 2)
    codes = next(iter(model.graph.initializers.values()))
    copied = ir.Value(name="again", const_value=ir.tensor(codes.const_value.numpy().copy(), name="again"))
    model.graph.register_initializer(copied)
    tape = ir.tape.Tape(model.graph)
    other = tape.op(
        "TernaryMatMulFloat",
        [model.graph.inputs[0], copied, *model.graph.node(0).inputs[2:]],
        {"K": 18, "N": 4, "layout": 0},
        domain=functions.DOMAIN,
    )
    total = tape.op("Add", [model.graph.node(0).outputs[0], other])
    total.name, total.type, total.shape = "sum", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["b", 4])
    model.graph.outputs[0] = total
    x = random_x((2, 18), 0)
    got, proto = run(model, x)
    np.testing.assert_allclose(got, 2 * layer.matmul(x, "float"), rtol=1e-5, atol=1e-5)
    assert sum(list(t.dims) == [4, 5] for t in proto.graph.initializer) == 1
