"""Native operators and portable bodies are compared, and a difference keeps the file from appearing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from test_functions import one_node_model, random_codes

from hybridkit.errors import GateError
from hybridkit.exporting import agreement
from hybridkit.exporting.agreement import check_native
from hybridkit.packing.tiles import tile
from hybridkit.runtime.library import library_path
from hybridkit.runtime.session import session

needs_library = pytest.mark.skipif(library_path() is None, reason="the native library is not built")
X = np.random.default_rng(1).normal(size=(5, 50)).astype(np.float32)
GEOMETRY = {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 2], "group": 2}


def saved(path, operator, x, N, K, *, tiled, positions=1, **attributes):
    kind = "Conv" if "Conv" in operator else "MatMul"
    prefix = operator.partition(kind)[0]
    rng = np.random.default_rng(N)
    _, codes = random_codes(prefix, N, K, rng)
    if tiled:
        codes = tile(
            codes, K, 2 if prefix == "Ternary" else 1, group=attributes.get("group", 1), positions=positions
        )
        attributes["layout"] = 2 if kind == "Conv" else 1
    weights = {"codes": codes, "scale": rng.uniform(0.1, 2, N).astype(np.float32)}
    weights["bias"] = rng.normal(size=N).astype(np.float32)
    onnx.save(one_node_model(operator, weights, x.shape, K=K, N=N, **attributes), path)
    return path


@pytest.fixture
def file(tmp_path):
    return saved(tmp_path / "m.onnx", "TernaryMatMulInt8", X, 20, 50, tiled=True)


@needs_library
@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("prefix", ["Ternary", "Binary"])
@pytest.mark.parametrize(("mode", "agree"), [("Int8", "equal"), ("Float", "close")])
def test_native_operators_compute_what_bodies_compute(prefix, mode, agree, tiled, tmp_path):
    x = X.copy()
    if mode == "Int8":
        x[2, 7] = np.nan
        x[3, 0] = np.inf
    file = saved(tmp_path / "m.onnx", f"{prefix}MatMul{mode}", x, 37, 50, tiled=tiled)
    assert check_native(file, {"x": x}) == agree
    images = np.random.default_rng(2).normal(size=(3, 6, 9, 8)).astype(np.float32)
    if mode == "Int8":
        images[1, 3, 4, 4] = np.nan
    file = saved(
        tmp_path / "c.onnx", f"{prefix}Conv{mode}", images, 40, 27, tiled=tiled, positions=9, **GEOMETRY
    )
    assert check_native(file, {"x": images}) == agree


def test_without_a_library_there_is_nothing_to_compare(file, monkeypatch):
    monkeypatch.setenv("HYBRIDKIT_LIBRARY", "none")
    assert check_native(file, {"x": X}) is None


def pretend(monkeypatch, portable, native):
    """A library whose outputs are `native`."""
    monkeypatch.setattr(agreement, "library_path", lambda: "there")
    monkeypatch.setattr(agreement, "_run", lambda path, feed, kind: [native if kind else portable])


def test_a_file_without_operators_of_ours_has_nothing_to_compare(tmp_path, monkeypatch):
    pretend(monkeypatch, X, X + 1)
    x = np.zeros((3, 2), np.uint8)
    onnx.save(one_node_model("TernaryUnpack", {}, x.shape, K=8), tmp_path / "m.onnx")
    assert check_native(tmp_path / "m.onnx", {"codes": x}) is None


def test_int8_differs_by_no_bit(file, monkeypatch):
    moved = X.copy()
    moved[0, 0] = np.nextafter(moved[0, 0], np.float32(9))
    pretend(monkeypatch, X, moved)
    with pytest.raises(GateError, match=r"m\.onnx was not written: native operators and portable bodies"):
        check_native(file, {"x": X})
    holed = X.copy()
    holed[0, 0] = np.nan
    pretend(monkeypatch, holed, holed)
    assert check_native(file, {"x": X}) == "equal"


def test_float_differs_by_rounding_only(tmp_path, monkeypatch):
    file = saved(tmp_path / "m.onnx", "TernaryMatMulFloat", X, 20, 50, tiled=False)
    pretend(monkeypatch, X, X * np.float32(1 + 1e-6))
    assert check_native(file, {"x": X}) == "close"
    pretend(monkeypatch, X, X * np.float32(1.001))
    with pytest.raises(GateError):
        check_native(file, {"x": X})
    pretend(monkeypatch, X, X * np.float32(np.nan))
    with pytest.raises(GateError):
        check_native(file, {"x": X})


@needs_library
@pytest.mark.parametrize(
    "sizes", [["b", 6, "h", "w"], [None, 6, None, None], [None, 6, 9, 8], ["b", 6, 9, None]]
)
def test_sizes_that_are_unknown_stay_unknown(sizes, tmp_path):
    """A size of -1 would make the nodes behind contradict it, and the model would not load."""
    images = np.zeros((1, 6, 9, 8), np.float32)
    path = saved(tmp_path / "c.onnx", "TernaryConvFloat", images, 40, 27, tiled=True, positions=9, **GEOMETRY)
    model = onnx.load(path)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sizes)
    model.graph.input[0].CopyFrom(x)
    model.graph.node.append(onnx.helper.make_node("Relu", ["y"], ["z"]))
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name="z"))
    onnx.save(model, path)
    shape = session(path).get_outputs()[0].shape
    assert shape[0] == "b" if sizes[0] else isinstance(shape[0], str)
    assert shape[1] == 40
    assert all(isinstance(size, int) for size in shape[2:]) == (sizes[2:] == [9, 8])
    assert -1 not in shape
    unknown = [size for size in shape if isinstance(size, str)]
    assert len(set(unknown)) == len(unknown), "nothing says that two of them are equal"
