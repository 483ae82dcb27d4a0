"""The C++ program of native/example, where CMake, a compiler and ONNX Runtime's library are at hand."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from ort_models import needs_library, node_model, random_layer, run, tiled

from hybridkit.runtime import library_path

SOURCE = Path(__file__).parents[2] / "native" / "example"
RUNTIME = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))

pytestmark = [
    needs_library,
    pytest.mark.skipif(not RUNTIME, reason="this onnxruntime wheel holds no libonnxruntime.so"),
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("c++") is None, reason="no CMake or no C++ compiler"
    ),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    build = tmp_path_factory.mktemp("example")
    subprocess.run(["cmake", "-S", SOURCE, "-B", build], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    return build / "run_model"


def run_program(program, model, shape, data):
    command = [program, RUNTIME[0], library_path(), model, *map(str, shape)]
    return subprocess.run(command, input=data, capture_output=True, timeout=60)


def test_the_example_computes_what_python_does(program, tmp_path):
    N, K = 40, 100
    layer = tiled(random_layer("Ternary", N, K, 0), "Ternary", K)
    model = node_model("TernaryMatMulInt8", layer, ["rows", K], body=False, N=N, K=K, layout=1)
    onnx.save(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(3, K)).astype(np.float32)
    done = run_program(program, tmp_path / "model.onnx", x.shape, x.tobytes())
    assert done.returncode == 0, done.stderr
    found = np.array([line.split() for line in done.stdout.decode().splitlines()], np.float32)
    np.testing.assert_array_equal(found, run(model, x))

    done = run_program(program, tmp_path / "model.onnx", (3, K + 1), bytes(4 * 3 * (K + 1)))
    assert done.returncode == 1
    assert b"dimensions for input" in done.stderr
    done = run_program(program, tmp_path / "model.onnx", x.shape, x.tobytes()[:-1])
    assert (done.returncode, done.stderr) == (1, b"the input is too short: 300 float32 are needed\n")
