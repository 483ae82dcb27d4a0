"""One linear layer as an ONNX model, as each peer stores it: y [M, N] = x [M, K] W^T, in one or many copies.

Each copy has an input and contents of its own, because ONNX Runtime merges equal nodes and shares equal
constants, which would keep "cold" weights warm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from hybridkit.exporting.functions import BASE3, DENSE, DOMAIN, DOMAIN_VERSION, function
from hybridkit.exporting.layout import worth_tiling
from hybridkit.packing.codecs import codec
from hybridkit.packing.tiles import tile, tiled_shape

OPSET: Final = 18
BLOCK: Final = 128  # of MatMulNBits
ACCURACY_LEVEL: Final = 4  # int8 activations: its fast path
Build = Callable[["Layer"], None]


class Layer:
    """One copy in the making: shape, random numbers, and the graph that it is added to."""

    def __init__(self, n: int, k: int, index: int, rng: np.random.Generator) -> None:
        self.n, self.k, self.rng = n, k, rng
        self.x, self.y, self._suffix = f"x{index}", f"y{index}", f"_{index}"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Its name in the graph."""
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        name += self._suffix
        self.constants.append(helper.make_tensor(name, kind, values.shape, values.tobytes(), raw=True))
        return name

    def node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Names of values inside the layer end with '~'."""
        local = (
            [name.replace("~", self._suffix) for name in inputs],
            [name.replace("~", self._suffix) for name in outputs],
        )
        self.nodes.append(helper.make_node(kind, *local, **attributes))

    def bytes_(self, *shape: int) -> NDArray[np.uint8]:
        """Random bytes."""
        return np.frombuffer(self.rng.bytes(math.prod(shape)), np.uint8).reshape(shape)


@dataclass(frozen=True)
class Peer:
    """How a layer is stored: bits of a weight, and what writes it down. `operator` is set for our own."""

    name: str
    bits: float
    build: Build
    operator: str | None = None

    @property
    def mode(self) -> str | None:
        """int8 or float, of our own."""
        return self.operator and ("float" if self.operator.endswith("Float") else "int8")

    def weight_bytes(self, n: int, k: int) -> int:
        """Bytes of the weights, about."""
        return math.ceil(n * k * self.bits / 8)


def model(peer: Peer, n: int, k: int, copies: int, seed: int = 0) -> bytes:
    """`copies` layers next to each other, inputs x0, x1, ... [M, k] and outputs y0, y1, ... [M, n]."""
    rng = np.random.default_rng(seed)
    layers = []
    for index in range(copies):
        layers.append(Layer(n, k, index, rng))
        peer.build(layers[-1])
    functions = [function(peer.operator, OPSET)] if peer.operator else []
    domains = {"": OPSET, "com.microsoft": 1, DOMAIN: DOMAIN_VERSION}
    return _serialised(
        [node for layer in layers for node in layer.nodes],
        [helper.make_tensor_value_info(layer.x, TensorProto.FLOAT, ["M", k]) for layer in layers],
        [helper.make_tensor_value_info(layer.y, TensorProto.FLOAT, ["M", n]) for layer in layers],
        [constant for layer in layers for constant in layer.constants],
        [helper.make_opsetid(domain, version) for domain, version in domains.items()],
        functions,
    )


def nothing(nodes: int) -> bytes:
    """`nodes` Identity nodes, each with an input of its own: what ONNX Runtime's own call costs."""
    names = range(nodes)
    return _serialised(
        [helper.make_node("Identity", [f"x{i}"], [f"y{i}"]) for i in names],
        [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["M", 1]) for i in names],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["M", 1]) for i in names],
        [],
        [helper.make_opsetid("", OPSET)],
        [],
    )


def _serialised(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
    opsets: list[onnx.OperatorSetIdProto],
    functions: list[onnx.FunctionProto],
) -> bytes:
    graph = helper.make_graph(nodes, "layers", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    return made.SerializeToString()


def _fp32(layer: Layer) -> None:
    w = layer.rng.standard_normal((layer.k, layer.n), np.float32)
    layer.node("MatMul", [layer.x, layer.constant("w", w)], [layer.y])


def _int8(layer: Layer) -> None:
    """As onnxruntime.quantization.quantize_dynamic writes it, by default (a test compares the two)."""
    w = layer.constant("w", layer.bytes_(layer.k, layer.n).view(np.int8))
    scale = layer.constant("scale", np.full((), 0.01, np.float32))
    zero = layer.constant("zero", np.zeros((), np.int8))
    layer.node("DynamicQuantizeLinear", [layer.x], ["q~", "s~", "z~"])
    layer.node("MatMulInteger", ["q~", w, "z~", zero], ["sum~"])
    layer.node("Cast", ["sum~"], ["float~"], to=TensorProto.FLOAT)
    layer.node("Mul", ["s~", scale], ["scale_product~"])
    layer.node("Mul", ["float~", "scale_product~"], [layer.y])


def blocks(bits: int, block: int = BLOCK, level: int = ACCURACY_LEVEL) -> Build:
    """As a MatMulNBits."""

    def build(layer: Layer) -> None:
        count = math.ceil(layer.k / block)
        codes = layer.constant("codes", layer.bytes_(layer.n, count, block * bits // 8))
        scales = layer.constant("scales", np.full(layer.n * count, 0.01, np.float32))
        sizes = {"K": layer.k, "N": layer.n, "bits": bits, "block_size": block}
        layer.node(
            "MatMulNBits",
            [layer.x, codes, scales],
            [layer.y],
            domain="com.microsoft",
            accuracy_level=level,
            **sizes,
        )

    return build


def groups(bits: int, size: int, mode: str) -> Build:
    """As our n-bit operator, with scales that are float16 numbers."""

    def build(layer: Layer) -> None:
        n, k = layer.n, layer.k
        codes = layer.constant("codes", layer.bytes_(*tiled_shape(n, k, bits)))
        scale = layer.constant("scale", np.full((n, math.ceil(k / size)), 2**-7, np.float32))
        bias = layer.constant("bias", np.zeros(n, np.float32))
        sizes = {"K": k, "N": n, "layout": 1, "group_size": size}
        layer.node(
            f"NBit{bits}MatMul{mode}", [layer.x, codes, scale, bias], [layer.y], domain=DOMAIN, **sizes
        )

    return build


_VALID: Final = np.array([b for b in range(256) if all(b >> s & 3 != 3 for s in (0, 2, 4, 6))], np.uint8)


def _ternary(mode: str) -> Build:
    """In the layout that `hybridkit.export` would choose."""

    def build(layer: Layer) -> None:
        n, k = layer.n, layer.k
        tiled = worth_tiling(n, k, 2)
        if tiled and n % 16 == 0 and k % 16 == 0:
            codes = _VALID[layer.bytes_(*tiled_shape(n, k, 2)) % len(_VALID)]
        else:
            codes = _VALID[layer.bytes_(n, -(-k // 4)) % len(_VALID)]
            if k % 4:
                codes[:, -1] &= (1 << 2 * (k % 4)) - 1
            codes = tile(codes, k, 2) if tiled else codes
        scale, bias = np.full(n, 0.01, np.float32), np.zeros(n, np.float32)
        inputs = [layer.constant(name, v) for name, v in (("codes", codes), ("scale", scale), ("bias", bias))]
        kind = f"TernaryMatMul{mode.capitalize()}"
        layer.node(kind, [layer.x, *inputs], [layer.y], domain=DOMAIN, K=k, N=n, layout=int(tiled))

    return build


def dense(prefix: str, mode: str) -> Build:
    """As our operator of ternary codes in fewer than two bits."""

    def build(layer: Layer) -> None:
        n, k = layer.n, layer.k
        random = layer.bytes_(n, codec(DENSE[prefix]).row_bytes(k))
        codes = layer.constant("codes", random % 243 if prefix == BASE3 else random)
        scale = layer.constant("scale", np.full(n, 0.01, np.float32))
        bias = layer.constant("bias", np.zeros(n, np.float32))
        sizes = {"K": k, "N": n, "layout": 0}
        layer.node(f"{prefix}MatMul{mode}", [layer.x, codes, scale, bias], [layer.y], domain=DOMAIN, **sizes)

    return build


OURS: Final = Peer("hybridkit int8", 2, _ternary("int8"), "TernaryMatMulInt8")
OURS_FLOAT: Final = Peer("hybridkit float", 2, _ternary("float"), "TernaryMatMulFloat")
FP32: Final = Peer("ORT fp32", 32, _fp32)
INT8: Final = Peer("ORT int8", 8, _int8)
NBITS2: Final = Peer("ORT MatMulNBits 2-bit", 2.25, blocks(2))
NBITS4: Final = Peer("ORT MatMulNBits 4-bit", 4.25, blocks(4))
PEERS: Final = (OURS, OURS_FLOAT, FP32, INT8, NBITS2, NBITS4)
