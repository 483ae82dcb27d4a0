"""Ternary codes in base 3 or 3:4-sparse in a file: the same layer from fewer bytes, and the way back."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import hybridkit
from hybridkit.bench import twin
from hybridkit.exporting import export
from hybridkit.exporting.functions import function
from hybridkit.exporting.layout import make_row_major
from hybridkit.packing.codecs import codec
from hybridkit.runtime.session import session


@settings(max_examples=50, deadline=None)
@given(
    dense=st.sampled_from(["base3", "sparse34"]),
    name=st.sampled_from(["two-bit", "nbit2"]),
    N=st.integers(1, 9),
    K=st.integers(1, 60),
    seed=st.integers(0, 999),
)
def test_the_body_repacks_to_the_bytes_of_the_codec(dense, name, N, K, seed):
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 243 if dense == "base3" else 256, (N, codec(dense).row_bytes(K)), np.uint8)
    codes = codec(dense).unpack(packed, K)
    operator = f"{dense.capitalize()}Repack"
    node = helper.make_node(operator, ["x"], ["y"], domain="hybridkit", K=K, first=int(name == "nbit2"))
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["N", packed.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["N", "bytes"])],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("hybridkit", 1)],
        functions=[function(operator, 18)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    found = onnx.reference.ReferenceEvaluator(model).run(None, {"x": packed})[0]
    np.testing.assert_array_equal(found, codec(name).pack(codes))


class Network(nn.Module):
    """Ternary products: a convolution, per row, in groups, 3:4-sparse in both, and one that two share."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(16, 48, 3)
        self.rows = nn.Linear(48, 70)
        self.groups = nn.Linear(70, 64)
        self.sparse = nn.Linear(64, 64)
        self.sparse_rows = nn.Linear(64, 64)
        self.twice = nn.Linear(64, 64)

    def forward(self, x):
        x = torch.relu(self.rows(self.line(x).transpose(1, 2)))
        return self.twice(torch.relu(self.twice(self.sparse_rows(self.sparse(torch.relu(self.groups(x)))))))


@pytest.fixture(scope="module", params=["int8", "float"])
def files(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    torch.manual_seed(0)
    network, x = Network(), torch.randn(2, 16, 9)
    own = {
        "groups": {"quantizer": "ternary-mse", "granularity": "group:32"},
        "sparse": {"quantizer": "ternary-sparse", "granularity": "group:32"},
        "sparse_rows": {"quantizer": "ternary-sparse"},
    }
    packed = hybridkit.quantize(
        network,
        quantizer="ternary-mse",
        overrides=own,
        quantize_all=True,
        activations=request.param,
        example_inputs=(x,),
    ).packed
    found = {}
    for how in (False, True):
        path = folder / f"{how}.onnx"
        export(network, packed, path, example_inputs=(x,), options={"dense": how})
        found[how] = path
    return found, x.numpy(), request.param


@pytest.mark.parametrize("native", [True, False])
def test_it_computes_the_same(files, native):
    paths, x, _ = files
    plain, small = (session(paths[how], native=native).run(None, {"input": x})[0] for how in (False, True))
    np.testing.assert_array_equal(plain, small)


def stored(path):
    graph = onnx.load(path).graph
    codes = {i.name: numpy_helper.to_array(i) for i in graph.initializer if i.data_type == TensorProto.UINT8}
    return codes, [node.op_type for node in graph.node]


def test_products_of_sparse_codes_are_operators_of_their_own(files):
    paths, _, _ = files
    for path in paths.values():
        codes, operators = stored(path)
        assert operators.count("Sparse34MatMulInt8") + operators.count("Sparse34MatMulFloat") == 1
        assert codes["sparse_rows.codes"].shape == (64, 10)


def test_codes_are_smaller_and_stored_once(files):
    paths, _, activations = files
    codes, operators = stored(paths[True])
    product = activations == "int8"  # of codes in base 3
    assert operators.count("Base3Repack") == (2 if product else 3)
    assert operators.count("Base3MatMulInt8") == product
    assert operators.count("Sparse34Repack") == 1
    rows = {name: array.shape for name, array in codes.items() if name.endswith(("base3", "sparse34"))}
    if product:
        rows["rows.base3"] = codes["rows.codes"].shape
    assert rows == {
        "line.base3": (48, 10),
        "rows.base3": (70, 10),
        "groups.base3": (64, 14),
        "sparse.sparse34": (64, 10),
    }
    # what two products read stays as it was
    assert [name for name in codes if name.startswith("twice")] == ["twice.codes"]


def test_what_reads_such_a_file_gets_two_bits_back(files, tmp_path):
    paths, _, _ = files
    models = {how: ir.load(path) for how, path in paths.items()}
    for model in models.values():
        make_row_major(model)
    found = {
        how: {
            name: value.const_value.numpy()
            for name, value in model.graph.initializers.items()
            if name.endswith("codes")
        }
        for how, model in models.items()
    }
    assert found[False].keys() == found[True].keys()
    for name, codes in found[False].items():
        np.testing.assert_array_equal(codes, found[True][name])
    made = [tmp_path / f"{how}.twin.onnx" for how in paths]
    counts = [twin.write_twin(path, to) for path, to in zip(paths.values(), made, strict=True)]
    assert counts[0] == counts[1] == 7
