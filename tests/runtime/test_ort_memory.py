"""Codes that are moved to huge pages: the same results, and no more memory than the file's."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from ort_models import needs_library, node_model, random_layer, tiled

from hybridkit.bench.memory import measure_memory, write_empty
from hybridkit.runtime import session

pytestmark = needs_library
N = K = 2048


def save(model, path, external):
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("layout", [0, 1])
def test_results_are_those_of_the_bodies(tmp_path, layout, external):
    layer = random_layer("Ternary", N, K, 0)
    held = tiled(layer, "Ternary", K) if layout else layer
    path = tmp_path / "model.onnx"
    save(node_model("TernaryMatMulInt8", held, ["rows", K], N=N, K=K, layout=layout), path, external)
    x = np.random.default_rng(1).normal(size=(2, K)).astype(np.float32)
    [portable] = session(path, threads=1, native=False).run(None, {"x": x})
    for _ in range(2):  # the second session finds the file's pages as the first one left them
        [native] = session(path, threads=1).run(None, {"x": x})
        np.testing.assert_array_equal(native, portable)


def chain(layers):
    """Products one behind the other, each with codes of its own."""
    nodes, tensors = [], []
    for i in range(layers):
        codes = np.frombuffer(np.random.default_rng(i).bytes(N * K // 4), np.uint8) & 0b01010101
        values = {
            f"codes{i}": codes,
            f"scale{i}": np.ones(N, np.float32),
            f"bias{i}": np.zeros(N, np.float32),
        }
        tensors += [numpy_helper.from_array(value, name) for name, value in values.items()]
        made = {"domain": "hybridkit", "N": N, "K": K, "layout": 1}
        nodes.append(helper.make_node("TernaryMatMulInt8", [f"x{i}", *values], [f"x{i + 1}"], **made))
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["rows", K]) for i in (0, layers)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("hybridkit", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted in other ways elsewhere")
@pytest.mark.parametrize("external", [True, False])
def test_a_session_holds_its_packed_weights_once(tmp_path, external):
    layers, path, empty = 40, Path(tmp_path, "model.onnx"), tmp_path / "empty.onnx"
    save(chain(layers), path, external)
    write_empty(empty)
    packed = layers * N * K // 4
    # of a file that holds its weights, 1.17.3 and 1.20.1 kept up to a fifth more than those, 1.32 did not
    old = tuple(map(int, onnxruntime.__version__.split(".")[:2])) <= (1, 20)
    allowed = 1.35 if old and not external else 1.15
    assert measure_memory(path, empty, threads=1, bound=2).resident_bytes <= allowed * packed
