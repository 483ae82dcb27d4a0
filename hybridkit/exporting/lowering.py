"""Packed layers -> nodes that a file may hold. Each rule writes what takes the place of one layer.

`portable` leaves ternary and binary matrix products and convolutions as they are (operators of ours, see
functions.py), writes n-bit products as operators of ours or as `com.microsoft.MatMulNBits`, whichever is
faster, and expresses the rest in stock operators: n-bit convolutions and all embeddings around an unpacking
operator. `full_precision` undoes packing. (See
matmulnbits.py for the third way.) All keep the arithmetic of functions.py; with groups, or offsets, the scale
cannot stay on the output, and y = (x^ . (q * scale + offset)) * s_x + bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybridkit.exporting.functions import DOMAIN, GATHER, ROW_MAJOR, STORAGES
from hybridkit.exporting.graph import Emitter, PackedNode, array_of, parse, rewrite
from hybridkit.packing.codecs import codec

MICROSOFT: Final = "com.microsoft"
FP32: Final = 1  # accuracy_level of MatMulNBits: float32 activations
INT8: Final = 4  # int8 activations in blocks
BLOCK: Final = 128  # of MatMulNBits where a row has one scale: fewer bytes than 32 or 64, and as fast
SMALLEST_BLOCK: Final = 16  # that MatMulNBits knows
LARGEST_BLOCK: Final = 256  # with larger ones ONNX Runtime up to 1.26 computes zeros or NaN
LARGEST_GROUP: Final = 1 << 16  # of our n-bit operators

Weights = Callable[[PackedNode], NDArray[np.float32]]

PREFIXES: Final = tuple(STORAGES)
_NBIT: Final = tuple(prefix for prefix in PREFIXES if prefix.startswith("NBit"))


@dataclass(frozen=True, slots=True)
class Products:
    """How n-bit products are written.

    level: with float activations INT8 rounds those to int8 in blocks. stock: as MatMulNBits, for runtimes
    without our library, which is slower than our operators.
    """

    level: int = FP32
    stock: bool = False


DEFAULT: Final = Products()


def portable(model: ir.Model, how: Products = DEFAULT) -> None:
    """Rewrite what is no operator of a file."""
    rewrite(
        model,
        {(p, "Embedding"): partial(embedding, how=how) for p in PREFIXES}
        | {(p, "MatMul"): partial(nbit_matmul, how=how) for p in _NBIT}
        | {(p, "Conv"): nbit_conv for p in _NBIT},
    )


def full_precision(model: ir.Model, weight_of: Weights | None = None) -> None:
    """Rewrite every packed layer as its float32 twin, without quantised activations.

    `weight_of` gives the matrix [N, K] of a layer; by default its packed weights, dequantised.
    """
    weights = weight_of or _dequantized
    rules = {"MatMul": fp32_matmul, "Conv": fp32_conv, "Embedding": fp32_embedding}
    given = {kind: partial(rule, weight_of=weights) for kind, rule in rules.items()}
    rewrite(model, {(p, kind): rule for p in PREFIXES for kind, rule in given.items()})


def embedding(e: Emitter, layer: PackedNode, how: Products = DEFAULT) -> ir.Value:
    """Gather rows of codes, unpacked, with their scales and offsets. how: of the head it may be tied to.

    Tied to an operator of ours it is one, too, which reads the codes where the head has them.
    """

    def gathered(numbers: ir.Value) -> ir.Value:
        found = e.node("Gather", numbers, layer.x, axis=0)
        if layer.group_size:
            return e.node("Gather", found, _group_of_column(e, layer), axis=-1)
        return e.node("Unsqueeze", found, e.constant(np.array([-1]), "last_axis"))

    if _is_tied_to_product(layer, how):
        codes = _codes_of_product(e, layer, FP32 if layer.int8 else how.level)
    elif _products(layer):
        wide = layer.x.dtype == ir.DataType.INT64
        rows = layer.x if wide else e.node("Cast", layer.x, to=ir.DataType.INT64)
        numbers = {"K": layer.K, "N": layer.N, "layout": ROW_MAJOR}
        codes = e.node(f"{layer.prefix}{GATHER}", rows, layer.codes, domain=DOMAIN, **numbers)
    else:
        codes = _unpacked(e, layer, e.node("Gather", layer.codes, layer.x, axis=0))
    weight = e.node("Mul", codes, gathered(layer.scale))
    return weight if layer.offset is None else e.node("Add", weight, gathered(layer.offset))


def _is_tied_to_product(layer: PackedNode, how: Products) -> bool:
    """Whether a MatMulNBits reads the same n-bit codes, which then are stored as it has them."""
    stock = any(not is_operator(parse(node), how) for node in _products(layer))
    return stock and layer.bits in (4, 8) and (not layer.group_size or fits_blocks(layer))


def _products(layer: PackedNode) -> list[ir.Node]:
    """The products that read the same codes."""
    return [node for node, _ in layer.codes.uses() if "MatMul" in node.op_type]


def _codes_of_product(e: Emitter, layer: PackedNode, level: int) -> ir.Value:
    """Integer-valued codes [..., K] of gathered rows, out of what `nbit_matmul` writes for a tied head.

    Its constants are written again here; equal ones become one when the file is assembled.
    """
    block, _ = block_scales(layer)
    last = e.constant(np.array([-1]), "last_axis")
    shape = e.node("Concat", e.node("Shape", layer.x), last, axis=0)

    def unpacked(codes: NDArray[np.int8], bits: int) -> ir.Value:
        rows = e.node("Gather", e.constant(_in_blocks(codes, bits, block), "codes"), layer.x, axis=0)
        flat = e.node("Reshape", rows, shape)
        return e.node(f"NBit{bits}Unpack", flat, domain=DOMAIN, K=layer.K, layout=ROW_MAJOR)

    def number(value: float, name: str) -> ir.Value:
        return e.constant(np.float32(value), name)

    codes = layer.integers()
    if not _in_halves(layer.bits, level):
        return unpacked(codes, layer.bits)
    high, low = _halves(codes)
    sixteen = e.node("Mul", unpacked(high, 4), number(16, "sixteen"))
    both = e.node("Add", sixteen, unpacked(low, 4))
    return e.node("Add", both, number(8, "eight"))  # 0 to 15 are stored as -8 to 7


def is_operator(layer: PackedNode, how: Products) -> bool:
    """Whether an n-bit product becomes an operator of ours."""
    if how.stock:
        return False
    if layer.int8 and layer.offset is not None:  # which meets rounded activations
        return False
    return group_columns(layer) <= LARGEST_GROUP and layer.group_size % _group_step(layer) == 0


def group_columns(layer: PackedNode) -> int:
    """Columns that share a scale, as our n-bit operators take them: whole rows are rounded up."""
    step = _group_step(layer)
    return layer.group_size or -(-layer.K // step) * step


def _group_step(layer: PackedNode) -> int:
    """What a group of our n-bit operators is a multiple of."""
    return 32 if layer.bits == 1 else 16


def nbit_operator(e: Emitter, layer: PackedNode, level: int = FP32) -> ir.Value:
    """An n-bit product as an operator of ours; level as in `Products`."""
    mode = "Int8" if layer.int8 else "Int8Blocks" if level == INT8 else "Float"
    size, scale = group_columns(layer), array_of(layer.scale).reshape(layer.N, -1)
    if mode == "Int8Blocks" and size > BLOCK and (not layer.group_size or size % BLOCK == 0):
        # so that an outlier spoils a block of activations, not the whole row
        size, scale = BLOCK, np.repeat(scale, -(-size // BLOCK), axis=1)[:, : -(-layer.K // BLOCK)]
    y = e.node(
        f"{layer.prefix}MatMul{mode}",
        layer.x,
        layer.codes,
        layer.scale if layer.scale.shape == scale.shape else e.constant(scale, "scale"),
        layer.bias,
        domain=DOMAIN,
        K=layer.K,
        N=layer.N,
        layout=ROW_MAJOR,
        group_size=size,
    )
    if layer.offset is None:
        return y
    x = layer.x
    if x.dtype in (None, ir.DataType.FLOAT):
        return with_offset(e, layer, x, y)
    wide = (e.node("Cast", value, to=ir.DataType.FLOAT) for value in (x, y))
    return e.node("Cast", with_offset(e, layer, *wide), to=x.dtype)


def nbit_matmul(e: Emitter, layer: PackedNode, how: Products = DEFAULT) -> ir.Value:
    """An operator of ours, or MatMulNBits with int8 activations as stock operators around it.

    Scales are in a MatMulNBits with float activations; integer sums of int8 ones stay exact without them.
    """
    if is_operator(layer, how):
        return nbit_operator(e, layer, how.level)
    if layer.group_size and not fits_blocks(layer):
        return _product(e, layer, (-1,), lambda x: e.node("MatMul", x, _matrix(e, layer)))
    outside = layer.int8 and layer.on_output
    block, scales = block_scales(layer, np.ones(layer.N, np.float32) if outside else None)
    used = FP32 if layer.int8 else how.level

    def multiply(x: ir.Value) -> ir.Value:
        return with_offset(e, layer, x, matmul_nbits(e, layer, x, layer.bits, block, scales, used))

    if layer.int8:
        return _product(e, layer, (-1,), multiply)
    return in_float32(e, layer, lambda x: with_bias(e, layer, multiply(x)))


def nbit_conv(e: Emitter, layer: PackedNode) -> ir.Value:
    """A stock Conv whose weight is unpacked in the graph."""
    geometry = layer.convolution
    kernel = geometry["kernel_shape"]
    shape = e.constant(np.array([layer.N, -1, *kernel]), "weight_shape")
    weight = e.node("Reshape", _weight(e, layer), shape)
    axes = tuple(range(1, len(kernel) + 2))
    return _product(e, layer, axes, lambda x: e.node("Conv", x, weight, **geometry))


def fits_blocks(layer: PackedNode) -> bool:
    """Whether MatMulNBits can take the layer's groups as its blocks, or as several of them."""
    return is_block(layer.group_size)


def is_block(size: int) -> bool:
    """Whether MatMulNBits has blocks of this size, or blocks that make it up."""
    return size >= SMALLEST_BLOCK and size & (size - 1) == 0


def block_size(K: int, most: int) -> int:
    """The block for rows of K weights: `most`, or the least of 32, 64 that holds a shorter row."""
    return min(most, max(32, 1 << (K - 1).bit_length()))


def block_scales(
    layer: PackedNode, instead: NDArray[np.float32] | None = None, most: int = BLOCK
) -> tuple[int, NDArray[np.float32]]:
    """The block for MatMulNBits, and a scale for each, [N, blocks]; `instead` of the scales of rows [N]."""
    if layer.group_size:
        return layer.group_size, array_of(layer.scale)
    block = block_size(layer.K, most)
    rows: NDArray[np.float32] = array_of(layer.scale) if instead is None else instead
    return block, np.repeat(rows[:, None], -(-layer.K // block), axis=1)


def with_offset(e: Emitter, layer: PackedNode, x: ir.Value, y: ir.Value) -> ir.Value:
    """`y`, the product of x [..., K] with codes and scales, and that with the offsets.

    A group's offset meets the sum of its activations; all layers with the same x share those sums, once a
    runtime has found equal nodes.
    """
    if layer.offset is None:
        return y
    offset: NDArray[np.float32] = array_of(layer.offset)
    size = layer.group_size or layer.K
    groups = -(-layer.K // size)
    last = e.constant(np.array([-1]), "last_axis")
    if short := groups * size - layer.K:
        # zeros behind, along the last axis of an x of any rank
        x = e.node("Pad", x, e.constant(np.array([0, short]), "pads"), None, last)
    parts = e.constant(np.array([groups, size]), "groups")
    shape = e.node("Concat", e.node("Shape", x, end=-1), parts, axis=0)
    sums = e.node("ReduceSum", e.node("Reshape", x, shape), last, keepdims=0)
    matrix = e.constant(np.ascontiguousarray(offset.reshape(layer.N, groups).T), "offset")
    return e.node("Add", y, e.node("MatMul", sums, matrix))


def matmul_nbits(
    e: Emitter, layer: PackedNode, x: ir.Value, bits: int, block: int, scales: NDArray[np.float32], level: int
) -> ir.Value:
    """x . (q * scales) as one stock node, whose codes are q + 2^(bits - 1): its default zero point.

    bits: 1 is stored as 2. scales: [N, blocks]. A block above LARGEST_BLOCK becomes several with one scale.
    8-bit codes q = 16 h + l, 0 <= l < 16, are two nodes where activations are floats: ONNX Runtime takes
    4-bit codes as they are, but unpacks a matrix of 8 bits to float32 at every run. A head of 49,152 x 576
    took 242 ms a token as one node and takes 6 as two.
    """
    codes, bits = layer.integers(), max(bits, 2)
    if not _in_halves(bits, level):
        return _matmul_nbits(e, layer, x, codes, bits, block, scales, level)
    high, low = _halves(codes)
    first = _matmul_nbits(e, layer, x, high, 4, block, 16 * scales, level)
    return e.node("Add", first, _matmul_nbits(e, layer, x, low, 4, block, scales, level, zero=0))


def _in_halves(bits: int, level: int) -> bool:
    """Whether a product is two nodes of 4 bits."""
    return bits == 8 and level == FP32


def _halves(codes: NDArray[np.int8]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """h and l of 8-bit codes 16 h + l + 8, both from -8 to 7: as 4-bit codes are stored."""
    high = codes >> 4
    return high, codes - 16 * high - 8


def _in_blocks(codes: NDArray[np.int8], bits: int, block: int) -> NDArray[np.uint8]:
    """Codes [N, K] as MatMulNBits stores them: uint8 [N, blocks, bytes of a block], padded with zeros."""
    N, K = codes.shape
    block = min(block, LARGEST_BLOCK)
    blocks = -(-K // block)
    padded = np.zeros((N, blocks * block), np.int8)
    padded[:, :K] = codes
    return codec(f"nbit{bits}").pack(padded).reshape(N, blocks, -1)


def _matmul_nbits(
    e: Emitter,
    layer: PackedNode,
    x: ir.Value,
    codes: NDArray[np.int8],
    bits: int,
    block: int,
    scales: NDArray[np.float32],
    level: int,
    zero: int | None = None,
) -> ir.Value:
    """As above; `zero` is the zero point of 4-bit codes, where it is not the default."""
    packed = _in_blocks(codes, bits, block)
    blocks = packed.shape[1]
    scales = np.repeat(scales, max(1, block // LARGEST_BLOCK), axis=1)[:, :blocks]
    points = []
    if zero is not None:
        two = np.uint8(zero | zero << 4)
        points = [e.constant(np.full(layer.N * -(-blocks // 2), two), "zero_points")]
    return e.node(
        "MatMulNBits",
        x,
        e.constant(packed, "codes"),
        e.constant(scales.reshape(-1), "block_scales"),
        *points,
        domain=MICROSOFT,
        K=layer.K,
        N=layer.N,
        bits=bits,
        block_size=min(block, LARGEST_BLOCK),
        accuracy_level=level,
    )


def in_float32(e: Emitter, layer: PackedNode, compute: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """`compute` between casts to float32 and back, where x has another type."""
    if layer.x.dtype in (None, ir.DataType.FLOAT):
        return compute(layer.x)
    result = compute(e.node("Cast", layer.x, to=ir.DataType.FLOAT))
    return e.node("Cast", result, to=layer.x.dtype)


def fp32_matmul(e: Emitter, layer: PackedNode, weight_of: Weights) -> ir.Value:
    """A stock MatMul with the dequantised weight."""
    weight = e.constant(weight_of(layer).T, "weight")

    def compute(x: ir.Value) -> ir.Value:
        return with_bias(e, layer, e.node("MatMul", x, weight))

    return in_float32(e, layer, compute)


def fp32_conv(e: Emitter, layer: PackedNode, weight_of: Weights) -> ir.Value:
    """A stock Conv with the dequantised weight."""
    geometry = layer.convolution
    weight = e.constant(weight_of(layer).reshape(layer.N, -1, *geometry["kernel_shape"]), "weight")
    return in_float32(e, layer, lambda x: e.node("Conv", x, weight, layer.bias, **geometry))


def fp32_embedding(e: Emitter, layer: PackedNode, weight_of: Weights) -> ir.Value:
    """A stock Gather from the dequantised table."""
    return e.node("Gather", e.constant(weight_of(layer), "weight"), layer.x, axis=0)


def _product(
    e: Emitter, layer: PackedNode, axes: tuple[int, ...], multiply: Callable[[ir.Value], ir.Value]
) -> ir.Value:
    """The arithmetic of a packed layer around `multiply`; activations are scaled over `axes`."""

    def compute(x: ir.Value) -> ir.Value:
        scale = _channels(e, layer, layer.scale, "channel_scale") if layer.on_output else None
        if layer.int8:
            x, s_x = _int8_activations(e, x, axes)
            scale = s_x if scale is None else e.node("Mul", s_x, scale)
        y = multiply(x)
        if scale is not None:
            y = e.node("Mul", y, scale)
        return with_bias(e, layer, y)

    return in_float32(e, layer, compute)


def with_bias(e: Emitter, layer: PackedNode, y: ir.Value) -> ir.Value:
    """`y` plus the bias; `y` itself where there is none, which packed layers hold as zeros."""
    if not array_of(layer.bias).any():
        return y
    return e.node("Add", y, _channels(e, layer, layer.bias, "channel_bias"))


def _int8_activations(e: Emitter, x: ir.Value, axes: tuple[int, ...]) -> tuple[ir.Value, ir.Value]:
    """Integer-valued x^ and its scale s_x, as functions.py defines them."""

    def number(value: float, name: str) -> ir.Value:
        return e.constant(np.float32(value), name)

    largest = e.node("ReduceMax", e.node("Abs", x), e.constant(np.array(axes), "axes"), keepdims=1)
    top = number(127, "top")
    s_x = e.node("Div", e.node("Max", largest, number(1e-5, "least")), top)
    rounded = e.node("Round", e.node("Div", x, s_x))
    return e.node("Clip", rounded, number(-127, "bottom"), top), s_x


def _channels(e: Emitter, layer: PackedNode, vector: ir.Value, name: str) -> ir.Value:
    """A vector [N] in the shape that lines it up with the output's channels."""
    if layer.kind == "MatMul":
        return vector
    ones = [1] * len(layer.convolution["kernel_shape"])
    return e.constant(array_of(vector).reshape(-1, *ones), name)


def _unpacked(e: Emitter, layer: PackedNode, codes: ir.Value) -> ir.Value:
    return e.node(f"{layer.prefix}Unpack", codes, domain=DOMAIN, K=layer.K, layout=ROW_MAJOR)


def _weight(e: Emitter, layer: PackedNode) -> ir.Value:
    """The unpacked matrix [N, K]; scaled already where the scale cannot stand on the output."""
    weight = _unpacked(e, layer, layer.codes)
    if layer.on_output:
        return weight
    weight = e.node("Mul", weight, _per_weight(e, layer, layer.scale))
    return weight if layer.offset is None else e.node("Add", weight, _per_weight(e, layer, layer.offset))


def _per_weight(e: Emitter, layer: PackedNode, numbers: ir.Value) -> ir.Value:
    """Scales or offsets as [N, K] or [N, 1]."""
    if layer.group_size:
        return e.node("Gather", numbers, _group_of_column(e, layer), axis=1)
    return e.constant(array_of(numbers)[:, None], "column")


def _matrix(e: Emitter, layer: PackedNode) -> ir.Value:
    return e.node("Transpose", _weight(e, layer), perm=[1, 0])


def _group_of_column(e: Emitter, layer: PackedNode) -> ir.Value:
    return e.constant(np.arange(layer.K) // layer.group_size, "group_of_column")


def _dequantized(layer: PackedNode) -> NDArray[np.float32]:
    """The weights [N, K], in memory as a stock operator wants them: a MatMul transposed."""
    return layer.dequantize("F" if layer.kind == "MatMul" else "C")
