"""Models of one node, run by the native operators or by the portable bodies on stock ONNX Runtime."""

import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hybridkit.exporting.functions import DENSE, STORAGES, function, input_names
from hybridkit.packing.codecs import codec
from hybridkit.packing.tiles import tile
from hybridkit.runtime.library import library_path, register

needs_library = pytest.mark.skipif(library_path() is None, reason="installed without the native library")

OPSET = 18
CODECS = {prefix: storage.codec for prefix, storage in STORAGES.items()} | DENSE
BITS = {prefix: storage.bits for prefix, storage in STORAGES.items()}
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def random_layer(prefix, N, K, seed, group_size=0):
    """Row-major codes, scale and bias."""
    rng = np.random.default_rng(seed)
    found = codec(CODECS[prefix])
    if prefix == "Sparse34":
        codes = rng.integers(0, 256, (N, found.row_bytes(K)), np.uint8)
    else:
        codes = found.pack(rng.choice(np.array(found.levels, np.int8), (N, K)))
    shape = (N, -(-K // group_size)) if group_size else N
    scale, bias = rng.uniform(0.01, 2, shape), rng.normal(size=N)
    return {"codes": codes, "scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}


def tiled(layer, prefix, K, group=1, positions=1):
    return {**layer, "codes": tile(layer["codes"], K, BITS[prefix], group=group, positions=positions)}


def node_model(operator, layer, x_shape, *, dtype="float32", constant=True, body=True, **attributes):
    """`operator` between casts of float32 to `dtype` and back; `constant=False` makes the layer inputs."""
    inner = ["inner_x", *input_names(operator)[1:]]
    nodes = [
        helper.make_node("Cast", ["x"], ["inner_x"], to=TYPES[dtype]),
        helper.make_node(operator, inner, ["inner_y"], domain="hybridkit", name="the_layer", **attributes),
        helper.make_node("Cast", ["inner_y"], ["y"], to=TensorProto.FLOAT),
    ]
    tensors = [numpy_helper.from_array(np.asarray(v, order="C"), n) for n, v in layer.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)]
    if not constant:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    graph = helper.make_graph(
        nodes,
        "one",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors if constant else [],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("hybridkit", 1)],
        functions=[function(operator, OPSET)] if body else [],
        ir_version=9,
    )


def options(native=True, threads=1):
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = 4
    if native:
        assert register(made)
    return made


def session_of(model, native=True, threads=1):
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options(native, threads), ["CPUExecutionProvider"])


def run(model, x, *, native=True, threads=1, **others):
    return session_of(model, native, threads).run(None, {"x": x, **others})[0]


def run_python(code, *arguments, **environment):
    """What a new Python process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout.strip()
