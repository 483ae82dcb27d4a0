"""Norms and rotary positions become the nodes that ONNX Runtime has for them, and nothing else does."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hybridkit
from hybridkit.exporting import Validation, export
from hybridkit.exporting.genai import rotary
from hybridkit.exporting.reshapes import drop_round_trips, same_before
from hybridkit.runtime.modules import load_packed
from hybridkit.runtime.session import session

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama, scaled": ("Llama", {"rope_scaling": {**SCALED, "original_max_position_embeddings": 16}}),
    "qwen3, normed heads": ("Qwen3", {"head_dim": 16}),
    "cohere, interleaved": ("Cohere", {}),
}
FUSED = {"llama", "llama, scaled", "qwen3, normed heads"}


def exported(family, folder, batch=1, layers=2, **how):
    name, more = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE | {"num_hidden_layers": layers}, **more)
    network = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    ids = torch.randint(0, 96, (batch, 9), generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids}
    packed = hybridkit.quantize(
        network, quantizer="nbit", options={"bits": 4}, embeddings=8, example_inputs=given
    ).packed
    validation = Validation(batches=[given])
    return (
        network,
        packed,
        export(
            network,
            packed,
            folder / "chat",
            target="genai",
            example_inputs=given,
            validation=validation,
            **how,
        ),
    )


def operators(path, folder=None):
    """How often each occurs in a file, or in what ONNX Runtime runs of it."""
    if folder is not None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        path = options.optimized_model_filepath
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
def test_a_decoder_becomes_few_nodes(family, tmp_path):
    layers = 2 if "qwen3" in family else 1
    _, _, report = exported(family, tmp_path, layers=layers)
    assert report.verification.max_rel < 1e-4
    found = operators(report.path)
    assert found["RotaryEmbedding"] == (2 * layers if family in FUSED else 0)
    assert (found["Neg"] == 0) == (family in FUSED)
    if family in FUSED:
        run = operators(report.path, tmp_path)
        assert run["SimplifiedLayerNormalization"] == (9 if "qwen3" in family else 3)
        assert run["Pow"] == run["ReduceMean"] == 0


def test_positions_of_a_batch_are_each_sample_s_own(tmp_path):
    network, packed, report = exported("llama", tmp_path, batch=3)
    run = session(report.path, threads=1)
    ids = torch.randint(0, 96, (3, 5))
    past = torch.zeros(3, 2, 0, 16)
    caches = {f"past_key_values.{i}.{part}": past.numpy() for i in range(2) for part in ("key", "value")}
    found = run.run(
        ["logits"],
        {"input_ids": ids.numpy(), "attention_mask": np.ones((3, 5), np.int64), **caches},
    )[0]
    with torch.no_grad():
        want = load_packed(network, packed)(input_ids=ids, use_cache=False).logits[:, -1:]
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4)


def test_the_accuracy_level_is_that_of_the_products(tmp_path):
    found = {}
    for level, mode in ((1, "Float"), (4, "Int8Blocks")):
        (tmp_path / mode).mkdir()
        _, _, report = exported("llama", tmp_path / mode, layers=1, options={"accuracy_level": level})
        graph = onnx.load(report.path, load_external_data=False).graph
        products = [n.op_type for n in graph.node if "MatMul" in n.op_type and n.domain == "hybridkit"]
        assert len(products) == 8
        assert all(product.endswith(mode) for product in products)
        found[level] = report.verification.max_rel
    assert found[1] < 1e-5 < found[4] < 0.1


def test_stock_products(tmp_path):
    _, _, report = exported("llama", tmp_path, layers=1, options={"accuracy_level": 4, "stock": True})
    graph = onnx.load(report.path, load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    levels = {a.i for node in products for a in node.attribute if a.name == "accuracy_level"}
    assert levels == {4}
    # the tied head of 8 bits is one node where activations are int8, and its codes lie in the file once
    assert len(products) == 8
    head = [i for i in graph.initializer if len(i.dims) == 3 and i.dims[0] == SHAPE["vocab_size"]]
    assert sum(np.prod(i.dims) for i in head) == SHAPE["vocab_size"] * SHAPE["hidden_size"]
    assert 1e-5 < report.verification.max_rel < 0.1


def test_biases_that_are_zero_are_no_node(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 48))
    x = torch.randn(4, 64)
    packed = hybridkit.quantize(network, quantizer="nbit", options={"bits": 4}, quantize_all=True).packed
    found = []
    for target in ("onnx", "matmulnbits"):
        path = tmp_path / f"{target}.onnx"
        export(network, packed, path, target=target, example_inputs=[x])
        graph = onnx.load(path).graph
        sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        adds = [node for node in graph.node if node.op_type == "Add"]
        found.append([{sizes[name] for name in add.input if name in sizes} for add in adds])
    assert found == [[], [{(48,)}]]  # our operators add theirs


NORMS = {
    "inverse": lambda x, v: x * torch.rsqrt(v),
    "the other way round": lambda x, v: torch.rsqrt(v) * x,
    "a sum": lambda x, v: x + torch.rsqrt(v),
}


@pytest.mark.parametrize("form", NORMS)
def test_products_with_an_inverse_root_are_divisions(form, tmp_path):
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(16))

        def forward(self, x):
            return self.weight * NORMS[form](x, x.pow(2).mean(-1, keepdim=True) + 1e-6)

    network, x = Norm(), torch.randn(3, 16)
    export(network, None, tmp_path / "a.onnx", example_inputs=[x])
    found = operators(tmp_path / "a.onnx")
    assert found["Div"] == (form != "a sum")
    assert found["Reciprocal"] == (form == "a sum")
    made = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    want = network(x).detach()
    np.testing.assert_allclose(made.run(None, {"input": x.numpy()})[0], want, rtol=1e-6, atol=1e-6)


def value(shape):
    return ir.Value(shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def reshaped(source, shape):
    node = ir.node("Reshape", [source, value([len(shape)])])
    node.outputs[0].shape = ir.Shape(shape)
    return node.outputs[0]


dimensions = st.lists(st.sampled_from(["batch", "tokens", 4, 8, None]), min_size=1, max_size=3)


@given(st.lists(dimensions, min_size=2, max_size=5))
def test_a_value_is_found_only_where_every_size_is_known_to_be_the_same(shapes):
    values = [value(shapes[0])]
    for shape in shapes[1:]:
        values.append(reshaped(values[-1], shape))
    *earlier, last = values
    found = same_before(earlier[-1], last.shape)
    same = [x for x, shape in zip(earlier, shapes, strict=False) if shape == shapes[-1] and None not in shape]
    assert found is (same[-1] if same else None)


def test_outputs_of_the_graph_keep_their_reshape():
    x = value(["n", 8])
    once = reshaped(x, ["n", 2, 4])
    back = reshaped(once, ["n", 8])
    graph = ir.Graph([x], [back], nodes=[once.producer(), back.producer()], opset_imports={"": 18})
    assert drop_round_trips(ir.Model(graph, ir_version=10)) == 0
    after = ir.node("Relu", [back])
    graph.append(after)
    graph.outputs[0] = after.outputs[0]
    assert drop_round_trips(ir.Model(graph, ir_version=10)) == 1
    assert after.inputs[0] is x


@settings(max_examples=40)
@given(
    st.sampled_from([(0, 4, -1, 1), (0, 4, 3, 1), (0, 3, -1, 1), (1, 4, -1, 1), (0, 4, 2, 1), (0, 4, -1, 2)]),
    st.sampled_from([(4, 8), (4, 2**63 - 1), (4, 7), (3, 8)]),
    st.booleans(),
)
def test_only_halves_in_their_order_are_turned(first, second, negated_first):
    """A concatenation of (-x[4:], x[:4]) is taken, anything near it is not."""
    x = value(["batch", 2, "tokens", 8])

    def numbers(*given):
        return [ir.Value(const_value=ir.tensor(np.array([number]))) for number in given]

    start = ir.node("Slice", [x, *numbers(*first)]).outputs[0]
    end = ir.node("Slice", [x, *numbers(*second, -1, 1)]).outputs[0]
    parts = [ir.node("Neg", [end]).outputs[0], start]
    if negated_first:
        parts = [end, ir.node("Neg", [start]).outputs[0]]
    joined = ir.node("Concat", parts, {"axis": -1})
    right = (
        first[:2] == (0, 4) and first[2] in (-1, 3) and first[3] == 1 and second[0] == 4 and second[1] >= 8
    )
    assert rotary._is_turned(joined, x) == (right and not negated_first)
