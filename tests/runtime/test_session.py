"""ONNX Runtime sessions: ready without torch, threads, memory, clear errors."""

import subprocess
import sys
import types

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from hybridkit.errors import FileError, UsageError
from hybridkit.runtime import session

KEEP_BODIES = "session.disable_aot_function_inlining"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """y = x . w, w packed as 4 two-bit codes in a byte, by a local function that unpacks it."""
    constants = {"shifts": np.array([0, 2, 4, 6], np.uint8), "three": np.uint8(3), "one": np.float32(1)}
    nodes = [
        helper.make_node("Constant", [], [k], value=numpy_helper.from_array(np.array(v)))
        for k, v in constants.items()
    ]
    nodes += [
        helper.make_node("BitShift", ["codes", "shifts"], ["shifted"], direction="RIGHT"),
        helper.make_node("BitwiseAnd", ["shifted", "three"], ["fields"]),
        helper.make_node("Cast", ["fields"], ["digits"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["digits", "one"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    opset = helper.make_opsetid("", 18)
    function = helper.make_function("hybridkit", "Unpacked", ["x", "codes"], ["y"], nodes, [opset])
    codes = np.array([[0b10_01_00_10], [0b00_10_10_01], [0b01_01_10_00]], np.uint8)
    graph = helper.make_graph(
        [helper.make_node("Unpacked", ["x", "codes"], ["y"], domain="hybridkit")],
        "example",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(codes, "codes")],
    )
    made = helper.make_model(
        graph, opset_imports=[opset, helper.make_opsetid("hybridkit", 1)], functions=[function], ir_version=10
    )
    path = tmp_path_factory.mktemp("session") / "model.onnx"
    onnx.save(made, path)
    return path


X = np.array([[1, 2, 3], [0, -1, 0.5]], np.float32)
WEIGHT = np.array([[1, -1, 0, 1], [0, 1, 1, -1], [-1, 1, 0, 0]], np.float32)


@pytest.mark.parametrize("low_memory", [None, True, False])
def test_a_session_runs_the_model(model, low_memory):
    (y,) = session(model, threads=1, low_memory=low_memory).run(None, {"x": X})
    assert np.array_equal(y, X @ WEIGHT)


def test_without_torch(model):
    code = (
        "import sys; import hybridkit, hybridkit.packing.model, hybridkit.runtime;"
        "import numpy as np; s = hybridkit.runtime.session(sys.argv[1]);"
        "print(s.run(None, {'x': np.ones((1, 3), np.float32)})[0].tolist(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[0.0, 1.0, 1.0, 0.0]] False"


def test_packing_imports_no_torch():
    code = (
        "import sys, pkgutil, importlib, hybridkit.packing as p\n"
        "for m in pkgutil.iter_modules(p.__path__): importlib.import_module(f'hybridkit.packing.{m.name}')\n"
        "print({'torch', 'onnxruntime', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("environment", "threads", "expected"),
    [(None, None, 0), ("3", None, 3), ("2,1", None, 2), ("many", None, 0), ("3", 1, 1), (None, 2, 2)],
)
def test_threads(model, monkeypatch, environment, threads, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    made = session(model, threads)
    assert made.get_session_options().intra_op_num_threads == expected


def keeps_bodies(made):
    try:
        return made.get_session_options().get_session_config_entry(KEEP_BODIES) == "1"
    except RuntimeError:  # ONNX Runtime's answer for an entry that was not set
        return False


def test_packed_weights_stay_packed_where_memory_is_short(model, monkeypatch):
    monkeypatch.setenv("HYBRIDKIT_LIBRARY", "none")  # the native operators unpack nothing
    assert keeps_bodies(session(model, 1, low_memory=True))
    assert not keeps_bodies(session(model, 1, low_memory=False))
    size = model.stat().st_size
    for free, expected in ((100 * size, True), (200 * size, False)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: types.SimpleNamespace(available=free))
        assert keeps_bodies(session(model, 1)) is expected
    assert not keeps_bodies(session(model, 1, low_memory=False))
    model.with_name("model.onnx.data").write_bytes(bytes(3 * size))
    assert keeps_bodies(session(model, 1))
    model.with_name("model.onnx.data").unlink()


def test_options_reach_onnxruntime(model):
    options = session(model, 1, log_severity_level=3, enable_cpu_mem_arena=False).get_session_options()
    assert options.log_severity_level == 3
    assert options.enable_cpu_mem_arena is False
    with pytest.raises(UsageError, match="did you mean 'log_severity_level'"):
        session(model, log_level=3)
    with pytest.raises(UsageError, match="log_severity_level cannot be 'high'"):
        session(model, log_severity_level="high")
    for threads in (0, -1, 1025, 2**40):
        with pytest.raises(UsageError, match=f"threads={threads}: "):
            session(model, threads)


def test_files_that_are_no_models(model, tmp_path):
    with pytest.raises(FileError, match="there is no model file"):
        session(tmp_path / "missing.onnx")
    with pytest.raises(FileError, match="there is no model file"):
        session(tmp_path)
    content = model.read_bytes()
    for damaged in (b"", b"hello " * 50, content[: len(content) // 2]):
        (tmp_path / "bad.onnx").write_bytes(damaged)
        with pytest.raises(FileError, match=r"cannot load .*bad\.onnx") as caught:
            session(tmp_path / "bad.onnx")
        assert "\n" not in str(caught.value)


def test_a_model_whose_external_data_is_gone(tmp_path):
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [weight],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "model.onnx"
    onnx.save(made, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    session(path, 1)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(FileError, match=r"cannot load .*model\.onnx"):
        session(path, 1)
