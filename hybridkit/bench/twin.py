"""The fp32 twin of a packed ONNX file: the same network with plain float32 weights and activations.

It is made from the file alone. Packed layers become stock MatMul, Conv and Gather nodes over dequantised
weights. Rounding of activations to int8 goes away with the operator that did it; where a file spells it out
in stock operators (around n-bit layers) it stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hybridkit.errors import HybridkitError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

MICROSOFT: Final = "com.microsoft"


def write_twin(path: Path, twin: Path) -> int:
    """Write the fp32 twin of the model at `path` to `twin` and return how many layers were unpacked.

    Nothing is written if that is none. Raises FileError if `path` is no ONNX model, HybridkitError if what
    comes out is not a valid model.
    """
    import onnx
    from onnx_ir.passes import common as passes

    from hybridkit.exporting import files, lowering
    from hybridkit.exporting.graph import packed_nodes
    from hybridkit.exporting.layout import make_row_major

    model = load(path)
    unpacked = sum(1 for _ in packed_nodes(model))
    make_row_major(model)
    lowering.full_precision(model)
    for node in list(model.graph.all_nodes()):
        unpacked += _unpack_blocks(model, node) or _unpack_codes(model, node)
    if not unpacked:
        return 0
    cleaning: tuple[Any, ...] = (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
        passes.DeduplicateHashedInitializersPass(),
    )
    for clean in cleaning:
        clean(model)
    files.save(model, twin)
    try:
        onnx.checker.check_model(str(twin))
    except onnx.checker.ValidationError as error:
        raise HybridkitError(f"{path}: its fp32 twin is not valid: {' '.join(str(error).split())}") from error
    return unpacked


def load(path: Path) -> ir.Model:
    """The model at `path`. Raises FileError if it is missing or is no valid ONNX model."""
    from hybridkit.exporting.door import admit
    from hybridkit.exporting.onnx_quantize import loading

    return loading.load(admit(path))


def _unpack_blocks(model: ir.Model, node: ir.Node) -> bool:
    """Write a MatMulNBits node as MatMul. False: it is another node, or one with a weight permutation."""
    if (node.domain, node.op_type) != (MICROSOFT, "MatMulNBits"):
        return False
    x, codes, scales, zeros, permutation, bias = (*node.inputs, None, None, None)[:6]
    if permutation is not None or x is None or _array(codes) is None or _array(scales) is None:
        return False
    K, N, bits, block = (node.attributes[n].as_int() for n in ("K", "N", "bits", "block_size"))
    weight = dequantize_blocks(_array(codes), _array(scales), _array(zeros), K, N, bits, block)
    value = _constant(model, f"{_name(codes)}.fp32", weight.T.copy())
    if bias is None:
        _replace(node, [("MatMul", [x, value])])
    else:
        _replace(node, [("MatMul", [x, value]), ("Add", [None, bias])])
    return True


def dequantize_blocks(
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zeros: NDArray[Any] | None,
    K: int,
    N: int,
    bits: int,
    block: int,
) -> NDArray[np.float32]:
    """The weight [N, K] of MatMulNBits: (code - zero point) * scale in blocks along K, low bits first.

    codes: uint8 [N, blocks, bytes]; scales: [N * blocks]; zeros: packed as the codes, or float [N * blocks],
    or None for 2^(bits - 1).
    """
    import numpy as np

    blocks = -(-K // block)
    digits = _digits(codes.reshape(N, -1), bits).reshape(N, blocks, block).astype(np.float32)
    if zeros is None:
        zero = np.full((N, blocks, 1), 1 << (bits - 1), np.float32)
    elif zeros.dtype == np.uint8:
        zero = _digits(zeros.reshape(N, -1), bits)[:, :blocks, None].astype(np.float32)
    else:
        zero = zeros.reshape(N, blocks, 1).astype(np.float32)
    weight = (digits - zero) * scales.reshape(N, blocks, 1).astype(np.float32)
    return weight.reshape(N, blocks * block)[:, :K]


def _digits(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    import numpy as np

    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(*packed.shape[:-1], -1)


def _unpack_codes(model: ir.Model, node: ir.Node) -> bool:
    """Unpack the constant row-major codes that an Unpack or a Gather of ours reads.

    An Unpack reads them directly or through a stock Gather of rows.
    """
    from hybridkit.exporting.functions import DOMAIN, GATHER, STORAGES
    from hybridkit.packing.codecs import codec

    if node.domain != DOMAIN or not node.op_type.endswith((GATHER, "Unpack")):
        return False
    if node.op_type.endswith(GATHER):
        rows, source = node.inputs
    else:
        source = node.inputs[0]
        gathered = source.producer() if source is not None else None
        rows = None
        if gathered is not None and gathered.op_type == "Gather":
            source, rows = gathered.inputs
    packed = _array(source)
    if packed is None:
        return False
    prefix = node.op_type.removesuffix(GATHER).removesuffix("Unpack")
    integers = codec(STORAGES[prefix].codec).unpack(packed, node.attributes["K"].as_int())
    value = _constant(model, f"{_name(source)}.fp32", integers.astype("float32"))
    if rows is None:
        node.outputs[0].replace_all_uses_with(value)
    else:
        _replace(node, [("Gather", [value, rows])], axis=0)
    return True


def _replace(node: ir.Node, chain: list[tuple[str, list[ir.Value | None]]], **attributes: int) -> None:
    """Put a chain of stock nodes in the place of `node`; None stands for the output of the one before."""
    import onnx_ir as ir

    tape = ir.tape.Tape()
    result: ir.Value | None = None
    for op_type, inputs in chain:
        result = tape.op(op_type, [result if value is None else value for value in inputs], attributes)
    assert node.graph is not None
    assert result is not None
    ir.convenience.replace_nodes_and_values(
        node.graph, node, [node], list(tape.nodes), node.outputs, [result]
    )


def _constant(model: ir.Model, name: str, array: NDArray[np.float32]) -> ir.Value:
    import onnx_ir as ir

    unique, count = name, 1
    while unique in model.graph.initializers:
        count += 1
        unique = f"{name}.{count}"
    tensor = ir.tensor(array, name=unique)
    value = ir.Value(
        name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def _array(value: ir.Value | None) -> Any:
    """The content of an initializer; None for anything else."""
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def _name(value: ir.Value | None) -> str:
    return (value.name if value is not None else None) or "weight"
