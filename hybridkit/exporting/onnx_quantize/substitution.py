"""A layer with its quantised weight in the place of the stock operator.

The node that is written is the one that an export from torch writes (see translation.py), so that folding,
lowering and assembling are the same for both. n-bit products become `com.microsoft.MatMulNBits`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from hybridkit.exporting import lowering
from hybridkit.exporting.functions import DOMAIN, ROW_MAJOR
from hybridkit.exporting.graph import Emitter, PackedNode, array_of, rewrite
from hybridkit.exporting.layout import worth_tiling
from hybridkit.exporting.onnx_quantize.products import Product
from hybridkit.exporting.onnx_quantize.quantizers import Quantized, Quantizer
from hybridkit.packing.codecs import codec
from hybridkit.packing.tiles import tiled_shape

_CODECS: Mapping[str, str] = {"Ternary": "two-bit", "Binary": "one-bit"}


def substitute(model: ir.Model, product: Product, quantizer: Quantizer, found: Quantized, int8: bool) -> None:
    """Replace the layer. n-bit convolutions keep float activations."""
    e = Emitter(model, product.name, product.last)
    nbit = quantizer.prefix.startswith("NBit")
    kind = "Conv" if product.geometry else "MatMul"
    N, K = found.codes.shape
    bias = product.bias if product.bias is not None else np.zeros(N, np.float32)
    if product.x.dtype is None:  # ONNX wants one type for both factors
        product.x.type = ir.TensorType(ir.DataType.from_numpy(product.weight.dtype))
    mode = "Int8" if int8 and not (nbit and product.geometry) else "Float"
    own = {"bits": quantizer.bits, "group_size": found.group_size} if nbit else {"layout": ROW_MAJOR}
    y = e.node(
        f"{'NBit' if nbit else quantizer.prefix}{kind}{mode}",
        product.x,
        e.constant(codec(_CODECS.get(quantizer.prefix, quantizer.prefix.lower())).pack(found.codes), "codes"),
        e.constant(found.scale, "scale"),
        e.constant(bias, "bias"),
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


def stored_bytes(product: Product, quantizer: Quantizer, found: Quantized) -> int:
    """Bytes of codes and scales in the file, and of a bias that the layer did not have."""
    N, K = map(int, found.codes.shape)
    bias = 0 if product.bias is not None else 4 * N
    if not quantizer.prefix.startswith("NBit"):
        group = product.geometry["group"] if product.geometry else 1
        tiles = math.prod(tiled_shape(N, K, quantizer.bits, group))
        tiled = worth_tiling(N, K, quantizer.bits, group)
        return (tiles if tiled else N * -(-K * quantizer.bits // 8)) + 4 * N + bias
    if product.geometry or (found.group_size and not lowering.is_block(found.group_size)):
        return N * -(-K * quantizer.bits // 8) + found.scale.nbytes + bias
    block = min(found.group_size or lowering.block_size(K, lowering.BLOCK), lowering.LARGEST_BLOCK)
    return N * -(-K // block) * (block * quantizer.bits // 8 + 4)


def lower(model: ir.Model) -> None:
    """n-bit products as MatMulNBits, whatever else is no operator of a file around an unpacking one."""
    rules = {(prefix, "MatMul"): _nbit_matmul for prefix in lowering.PREFIXES if prefix.startswith("NBit")}
    rewrite(model, rules)
    lowering.portable(model)


def _nbit_matmul(e: Emitter, layer: PackedNode) -> ir.Value:
    """int8 activations are those of MatMulNBits, in blocks: nothing was trained that they have to equal."""
    if layer.group_size and not lowering.fits_blocks(layer):
        return lowering.nbit_matmul(e, layer)
    block = layer.group_size or lowering.block_size(layer.K, lowering.BLOCK)
    blocks = -(-layer.K // block)
    scales = array_of(layer.scale)
    scales = scales if layer.group_size else np.repeat(scales[:, None], blocks, axis=1)
    level = lowering.INT8 if layer.int8 else lowering.FP32

    def compute(x: ir.Value) -> ir.Value:
        y = lowering.matmul_nbits(e, layer, x, layer.bits, block, scales, level)
        return e.node("Add", y, layer.bias) if np.any(array_of(layer.bias)) else y

    return lowering.in_float32(e, layer, compute)
