"""A layer with its quantised weight in the place of the stock operator.

The node that is written is the one that an export from torch writes (see translation.py), so that folding,
lowering and assembling are the same for both. n-bit products become `com.microsoft.MatMulNBits`.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from hybridkit.exporting import lowering
from hybridkit.exporting.functions import DOMAIN, ROW_MAJOR
from hybridkit.exporting.graph import Emitter, PackedNode, rewrite
from hybridkit.exporting.layout import worth_tiling
from hybridkit.exporting.onnx_quantize.products import Product
from hybridkit.exporting.onnx_quantize.rounding import Quantized, Rounding
from hybridkit.packing.tiles import tiled_shape


def substitute(model: ir.Model, product: Product, rounding: Rounding, found: Quantized, int8: bool) -> None:
    """Replace the layer. n-bit convolutions keep float activations."""
    e = Emitter(model, product.name, product.last)
    nbit = rounding.is_nbit
    kind = "Conv" if product.geometry else "MatMul"
    N, K = found.codes.shape
    bias = product.bias if product.bias is not None else np.zeros(N, np.float32)
    if product.x.dtype is None:  # ONNX wants one type for both factors
        product.x.type = ir.TensorType(ir.DataType.from_numpy(product.weight.dtype))
    mode = "Int8" if int8 and not (nbit and product.geometry) else "Float"
    own = {"bits": rounding.stored_bits, "group_size": found.group_size} if nbit else {"layout": ROW_MAJOR}
    y = e.node(
        f"{'NBit' if nbit else rounding.prefix}{kind}{mode}",
        product.x,
        e.constant(rounding.codec.pack(found.codes), "codes"),
        e.constant(found.scale, "scale"),
        e.constant(bias, "bias"),
        *([] if found.offset is None else [e.constant(found.offset, "offset")]),
        domain=DOMAIN,
        K=K,
        N=N,
        **own,
        **(product.geometry or {}),
    )
    addend = product.node.inputs[2] if product.beta else None
    if addend is not None:
        beta = e.constant(np.asarray(product.beta, product.weight.dtype), "beta")
        y = e.node("Add", y, addend if product.beta == 1 else e.node("Mul", addend, beta))
    e.finish(y)


def stored_bytes(product: Product, rounding: Rounding, found: Quantized, int8: bool) -> int:
    """Bytes of codes and scales in the file, and of a bias that the layer did not have."""
    (N, K), bits = map(int, found.codes.shape), rounding.stored_bits
    bias = 0 if product.bias is not None else 4 * N
    offset = 0 if found.offset is None else found.offset.nbytes
    if not rounding.is_nbit:
        group = product.geometry["group"] if product.geometry else 1
        tiles = math.prod(tiled_shape(N, K, bits, group))
        tiled = worth_tiling(N, K, bits, group)
        return (tiles if tiled else N * -(-K * bits // 8)) + 4 * N + bias
    if product.geometry or (found.group_size and not lowering.is_block(found.group_size)):
        return N * -(-K * bits // 8) + found.scale.nbytes + offset + bias
    block = min(found.group_size or lowering.block_size(K, lowering.BLOCK), lowering.LARGEST_BLOCK)
    blocks = -(-K // block)
    halves = bits == 8 and not int8  # two nodes: another set of scales, and zero points
    zero_points = halves * N * -(-blocks // 2)
    return N * blocks * (block * bits // 8 + 4 * (1 + halves)) + zero_points + offset


def lower(model: ir.Model) -> None:
    """n-bit products as MatMulNBits, whatever else is no operator of a file around an unpacking one."""
    rules = {(prefix, "MatMul"): _nbit_matmul for prefix in lowering.PREFIXES if prefix.startswith("NBit")}
    rewrite(model, rules)
    lowering.portable(model)


def _nbit_matmul(e: Emitter, layer: PackedNode) -> ir.Value:
    """int8 activations are those of MatMulNBits, in blocks: nothing was trained that they have to equal."""
    if layer.group_size and not lowering.fits_blocks(layer):
        return lowering.nbit_matmul(e, layer)
    block, scales = lowering.block_scales(layer)
    level = lowering.INT8 if layer.int8 else lowering.FP32

    def compute(x: ir.Value) -> ir.Value:
        y = lowering.matmul_nbits(e, layer, x, layer.bits, block, scales, level)
        return lowering.with_bias(e, layer, lowering.with_offset(e, layer, x, y))

    return lowering.in_float32(e, layer, compute)
