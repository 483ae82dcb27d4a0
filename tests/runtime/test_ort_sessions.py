"""The library in ONNX Runtime: finding and registering it, and sessions that share and compete."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from ort_models import (
    needs_library,
    node_model,
    options,
    random_layer,
    run,
    run_python,
    session_of,
    tiled,
)  # fmt: skip

import hybridkit.runtime
from hybridkit.errors import FileError, HybridkitError
from hybridkit.exporting.functions import function
from hybridkit.runtime import library_path, register

N, K = 70, 130


def model_of(seed, **arguments):
    layer = tiled(random_layer("Ternary", N, K, seed), "Ternary", K)
    return node_model("TernaryMatMulInt8", layer, ["rows", K], N=N, K=K, layout=1, **arguments)


def activations(seed, rows=9):
    return np.random.default_rng(seed).normal(size=(rows, K)).astype(np.float32)


def lying_body(operator):
    """The local function of `operator`, but its result is bias alone."""
    made = function(operator, 18)
    del made.node[:]
    made.node.append(helper.make_node("Identity", ["bias"], ["y"]))
    return made


@needs_library
def test_the_native_operator_goes_before_the_body():
    model = model_of(0)
    x, bias = activations(0), numpy_helper.to_array(model.graph.initializer[2])
    expected = run(model, x, native=False)
    del model.functions[:]
    model.functions.append(lying_body("TernaryMatMulInt8"))
    np.testing.assert_array_equal(run(model, x), expected)
    np.testing.assert_array_equal(run(model, x, native=False), bias)


@needs_library
def test_operators_without_a_kernel_are_inlined_beside_the_native_ones():
    """rows = Unpack(Gather(codes, ids)) feeds a product: what an embedding and a layer behind it are."""
    layer = tiled(random_layer("Ternary", N, K, 0), "Ternary", K)
    table = random_layer("Ternary", 12, K, 1)["codes"]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("TernaryUnpack", ["rows"], ["x"], domain="hybridkit", K=K, layout=0),
        helper.make_node(
            "TernaryMatMulInt8",
            ["x", "codes", "scale", "bias"],
            ["y"],
            domain="hybridkit",
            N=N,
            K=K,
            layout=1,
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "embedding",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["count"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["count", N])],
        [numpy_helper.from_array(v, n) for n, v in {**layer, "table": table}.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("hybridkit", 1)],
        functions=[function("TernaryUnpack", 18), lying_body("TernaryMatMulInt8")],
        ir_version=9,
    )
    ids = {"ids": np.array([3, 0, 11])}
    [native] = session_of(model).run(None, ids)
    model.functions[1].CopyFrom(function("TernaryMatMulInt8", 18))
    np.testing.assert_array_equal(native, session_of(model, native=False).run(None, ids)[0])


@needs_library
def test_registering_again_changes_nothing():
    settings = options()
    assert register(settings)
    settings.register_custom_ops_library(str(library_path()))
    made = onnxruntime.InferenceSession(model_of(0).SerializeToString(), settings, ["CPUExecutionProvider"])
    np.testing.assert_array_equal(
        made.run(None, {"x": activations(0)})[0], run(model_of(0), activations(0), native=False)
    )


@needs_library
def test_sessions_share_options_and_outlive_them():
    settings = options(threads=2)
    sessions = [
        onnxruntime.InferenceSession(model_of(seed).SerializeToString(), settings, ["CPUExecutionProvider"])
        for seed in range(3)
    ]
    del settings
    for seed in (0, 2, 1):
        [y] = sessions[seed].run(None, {"x": activations(seed)})
        sessions[seed] = None
        np.testing.assert_array_equal(y, run(model_of(seed), activations(seed), native=False))


@needs_library
def test_concurrent_runs_of_one_session():
    made = session_of(model_of(0), threads=2)
    inputs = [activations(seed, rows=1 + seed % 40) for seed in range(60)]
    expected = [made.run(None, {"x": x})[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: made.run(None, {"x": x})[0], inputs))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_library
def test_concurrent_sessions():
    start = threading.Barrier(4)

    def work(seed):
        start.wait()
        for _ in range(5):  # sessions are made, run and dropped beside each other
            y = run(model_of(seed), activations(seed), threads=2)
        return y

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    for seed, y in enumerate(found):
        np.testing.assert_array_equal(y, run(model_of(seed), activations(seed), native=False))


@needs_library
@pytest.mark.parametrize("external", [False, True])
def test_session_takes_the_library_by_itself(tmp_path, external):
    model = model_of(0)
    del model.functions[:]
    model.functions.append(lying_body("TernaryMatMulInt8"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=external, location="model.data", size_threshold=0)
    x = activations(0)
    [native] = hybridkit.runtime.session(path, threads=1).run(None, {"x": x})
    np.testing.assert_array_equal(native, run(model_of(0), x, native=False))
    [portable] = hybridkit.runtime.session(path, threads=1, native=False).run(None, {"x": x})
    assert not np.array_equal(portable, native)


def test_without_the_library_the_bodies_run(tmp_path, monkeypatch):
    onnx.save(model_of(0), tmp_path / "model.onnx")
    x = activations(0)
    [with_library] = hybridkit.runtime.session(tmp_path / "model.onnx").run(None, {"x": x})
    monkeypatch.setenv("HYBRIDKIT_LIBRARY", "none")
    assert library_path() is None
    assert register(onnxruntime.SessionOptions()) is False
    [without] = hybridkit.runtime.session(tmp_path / "model.onnx").run(None, {"x": x})
    np.testing.assert_array_equal(with_library, without)


def test_a_library_that_is_not_there_or_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDKIT_LIBRARY", str(tmp_path / "libhybridkit.so"))
    with pytest.raises(FileError, match=r"HYBRIDKIT_LIBRARY names .* which is not there"):
        library_path()
    (tmp_path / "libhybridkit.so").write_bytes(b"no library")
    assert library_path() == tmp_path / "libhybridkit.so"
    with pytest.raises(FileError, match=r"cannot load .*libhybridkit\.so.*HYBRIDKIT_LIBRARY=none") as caught:
        register(onnxruntime.SessionOptions())
    assert "\n" not in str(caught.value)


@needs_library
def test_an_onnxruntime_that_is_too_old(monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.16.3")
    with pytest.raises(HybridkitError, match=r"need ONNX Runtime 1\.17 or newer, this is 1\.16\.3"):
        register(onnxruntime.SessionOptions())


def test_the_library_is_found_without_torch_or_onnxruntime():
    code = """
import sys, hybridkit.runtime as r
print(r.library_path(), {"torch", "onnxruntime"} & set(sys.modules))
"""
    assert run_python(code) == f"{library_path()} set()"


@needs_library
def test_a_process_ends_cleanly_with_sessions_left(tmp_path):
    code = """
import sys, numpy as np, onnxruntime
from hybridkit.runtime import session
kept = session(sys.argv[1], threads=2)
kept.run(None, {"x": np.ones((3, 130), np.float32)})
print("ran")
"""
    onnx.save(model_of(0), tmp_path / "model.onnx")
    assert run_python(code, tmp_path / "model.onnx") == "ran"
