"""The portable bodies of our operators, as ONNX local functions of the domain `hybridkit`.

A runtime that knows an operator runs its own kernel; every other one inlines the body, which consists of
stock operators. Bodies are written in ONNX's textual syntax. The operators:

    {Ternary,Binary}MatMul{Int8,Float}          x [..., K], codes, scale [N], bias [N] -> y [..., N]
    {Ternary,Binary}Conv{Int8,Float}            x [B, C, ...], codes, scale [N], bias [N] -> y [B, N, ...]
    {Ternary,Binary,NBit2,NBit4,NBit8}Unpack    codes [..., bytes] -> y float32 [..., K], integer-valued

Codes are uint8 [N, bytes], rows padded to whole bytes; attributes K and N give the matrix and `layout` the
order of the codes: 0 is row-major, lowest bits first. Convolutions add ONNX's own attributes and flatten the
weight [N, C/group, ...] to [N, K]. Scale and bias are float32. x may be float32, float16 or bfloat16; the
arithmetic is float32 and y has the type of x:

    Int8:   s_x = max(max|x|, 1e-5) / 127     over the last axis (MatMul), per sample (Conv)
            x^  = clip(round_half_even(x / s_x), -127, 127)
            y   = float(x^ . q) * (s_x * scale) + bias
    Float:  y   = (x . q) * scale + bias

A sum of integer products is exact in float32 while it stays below 2^24: K < 132,000 for ternary and binary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx

DOMAIN: Final = "hybridkit"
DOMAIN_VERSION: Final = 1
LAYOUT: Final = 0  # the only order of codes so far; see the module's docstring
MIN_OPSET: Final = 18  # BitwiseAnd, and ReduceMax with its axes as an input

_CONV_ATTRIBUTES: Final = ("kernel_shape", "strides", "pads", "dilations", "group")


@dataclass(frozen=True, slots=True)
class Storage:
    """How a byte holds codes: 8 / bits unsigned digits d, lowest first; a code is step * d + offset."""

    prefix: str  # of the operators that read it
    bits: int
    step: int
    offset: int
    stems: tuple[str, ...]


_ALL_STEMS: Final = ("MatMulInt8", "MatMulFloat", "ConvInt8", "ConvFloat", "Unpack")
STORAGES: Final = {  # by the name of the packing codec whose bytes are layout 0
    "two-bit": Storage("Ternary", 2, 1, -1, _ALL_STEMS),
    "one-bit": Storage("Binary", 1, 2, -1, _ALL_STEMS),
    "nbit2": Storage("NBit2", 2, 1, -2, ("Unpack",)),
    "nbit4": Storage("NBit4", 4, 1, -8, ("Unpack",)),
    "nbit8": Storage("NBit8", 8, 1, -128, ("Unpack",)),
}
_OPERATORS: Final = {s.prefix + stem: (s, stem) for s in STORAGES.values() for stem in s.stems}
OPERATORS: Final = tuple(_OPERATORS)


def attribute_names(operator: str) -> tuple[str, ...]:
    """The attributes of an operator, all of them required."""
    stem = _OPERATORS[operator][1]
    if stem == "Unpack":
        return ("K", "layout")
    return ("K", "N", "layout", *(_CONV_ATTRIBUTES if stem.startswith("Conv") else ()))


def input_names(operator: str) -> tuple[str, ...]:
    """The inputs of an operator, all of them required."""
    return ("codes",) if _OPERATORS[operator][1] == "Unpack" else ("x", "codes", "scale", "bias")


def function(operator: str, opset: int) -> onnx.FunctionProto:
    """The local function of `operator` (one of OPERATORS) for a model of the given opset, at least 18."""
    import onnx

    storage, stem = _OPERATORS[operator]
    attributes, inputs = ", ".join(attribute_names(operator)), ", ".join(input_names(operator))
    text = f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {operator} <{attributes}> ({inputs}) => (y) {{
        {_body(stem, storage)}
    }}"""
    return onnx.parser.parse_function(text)


def _body(stem: str, storage: Storage) -> str:
    if stem == "Unpack":
        return _UNPACK_SHAPE + _digits(storage, "y")
    layer = _MATMUL if stem.startswith("MatMul") else _CONV
    mode = "Int8" if stem.endswith("Int8") else "Float"
    return _MATRIX_SHAPE + _digits(storage, "q") + layer[mode]


def _digits(storage: Storage, result: str) -> str:
    """Bytes `codes` [..., B] to float32 codes [..., K]; `unpacked_shape` is the shape [..., 8/bits * B]."""
    shifts = range(0, 8, storage.bits)
    scaled = "digit" if storage.step == 1 else "doubled"
    return f"""
        shifts = Constant <value = uint8[{len(shifts)}] {{{", ".join(map(str, shifts))}}}> ()
        mask = Constant <value = uint8[1] {{{(1 << storage.bits) - 1}}}> ()
        last_axis = Constant <value_ints = [-1]> ()
        zero = Constant <value_ints = [0]> ()
        width = Constant <value_int: int = @K> ()
        width_1d = Reshape (width, last_axis)
        bytes = Unsqueeze (codes, last_axis)
        shifted = BitShift <direction = "RIGHT"> (bytes, shifts)
        masked = BitwiseAnd (shifted, mask)
        unpacked = Reshape (masked, unpacked_shape)
        kept = Slice (unpacked, zero, width_1d, last_axis)
        digit = Cast <to = 1> (kept)
        {"" if storage.step == 1 else "doubled = Add (digit, digit)"}
        offset = Constant <value_float = {storage.offset}.0> ()
        {result} = Add ({scaled}, offset)
    """


_UNPACK_SHAPE = """
        outer = Shape <end = -1> (codes)
        rest = Constant <value_ints = [-1]> ()
        unpacked_shape = Concat <axis = 0> (outer, rest)
"""
_MATRIX_SHAPE = """
        unpacked_shape = Constant <value_ints = [0, -1]> ()
"""
_SCALE_X = """
        magnitude = Abs ({x})
        reduced_axis = Constant <value_ints = [-1]> ()
        largest = ReduceMax <keepdims = 1> (magnitude, reduced_axis)
        least = Constant <value_float = 1e-5> ()
        bounded = Max (largest, least)
        top = Constant <value_float = 127.0> ()
        bottom = Constant <value_float = -127.0> ()
        {s_x} = Div (bounded, top)
"""
_ROUND_X = """
        divided = Div (x_float, s_x)
        rounded = Round (divided)
        x_int8 = Clip (rounded, bottom, top)
"""
_MATMUL = {
    "Int8": f"""
        x_float = Cast <to = 1> (x)
        {_SCALE_X.format(x="x_float", s_x="s_x")}
        {_ROUND_X}
        w = Transpose <perm = [1, 0]> (q)
        sum = MatMul (x_int8, w)
        s = Mul (s_x, scale)
        product = Mul (sum, s)
        result = Add (product, bias)
        y = CastLike (result, x)
    """,
    "Float": """
        x_float = Cast <to = 1> (x)
        w = Transpose <perm = [1, 0]> (q)
        sum = MatMul (x_float, w)
        product = Mul (sum, scale)
        result = Add (product, bias)
        y = CastLike (result, x)
    """,
}
# Ones in place of the kernel's sizes give shapes of the right rank, for any number of spatial axes.
_CONV_WEIGHT = """
        x_float = Cast <to = 1> (x)
        kernel = Constant <value_ints: ints = @kernel_shape> ()
        ones = Div (kernel, kernel)
        channels = Constant <value_ints = [0, -1]> ()
        w_shape = Concat <axis = 0> (channels, kernel)
        w = Reshape (q, w_shape)
        per_channel = Constant <value_ints = [1, -1]> ()
        channel_shape = Concat <axis = 0> (per_channel, ones)
        s_w = Reshape (scale, channel_shape)
        b = Reshape (bias, channel_shape)
"""
_CONV_CALL = """
        sum = Conv <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
                    dilations: ints = @dilations, group: int = @group> ({x}, w)
"""
_CONV = {
    "Int8": f"""
        {_CONV_WEIGHT}
        samples = Flatten <axis = 1> (x_float)
        {_SCALE_X.format(x="samples", s_x="s_x_flat")}
        per_sample = Constant <value_ints = [0, 1]> ()
        sample_shape = Concat <axis = 0> (per_sample, ones)
        s_x = Reshape (s_x_flat, sample_shape)
        {_ROUND_X}
        {_CONV_CALL.format(x="x_int8")}
        s = Mul (s_x, s_w)
        product = Mul (sum, s)
        result = Add (product, b)
        y = CastLike (result, x)
    """,
    "Float": f"""
        {_CONV_WEIGHT}
        {_CONV_CALL.format(x="x_float")}
        product = Mul (sum, s_w)
        result = Add (product, b)
        y = CastLike (result, x)
    """,
}
