"""The portable bodies of our operators, as ONNX local functions of the domain `hybridkit`.

A runtime that knows an operator runs its own kernel; every other one inlines the body, which consists of
stock operators. Bodies are written in ONNX's textual syntax. The operators:

    {Ternary,Binary}MatMul{Int8,Float}          x [..., K], codes, scale [N], bias [N] -> y [..., N]
    Sparse34MatMul{Int8,Float}                  the same, of 3:4-sparse codes (packing/sparse.py)
    Base3MatMulInt8                             the same, of ternary codes of which five are a byte
    {Ternary,Binary}Conv{Int8,Float}            x [B, C, ...], codes, scale [N], bias [N] -> y [B, N, ...]
    NBit{1,2,4,8}MatMul{Int8,Int8Blocks,Float}  x [..., K], codes, scale [N, groups], bias [N] -> y [..., N]
    {Ternary,Binary,NBit{1,2,4,8}}Gather        rows x [...], codes -> y float32 [..., K], integer-valued
    {Ternary,Binary,NBit{1,2,4,8}}Unpack        codes [..., bytes] -> y float32 [..., K], integer-valued
    {Base3,Sparse34}Repack                      codes [N, bytes] -> y [N, ceil(K / 4)], layout 0
    CachedAttention                             ONNX Runtime's GroupQueryAttention, of float32

Attributes K and N give the matrix and `layout` the order of the uint8 codes: 0 is row-major, [N, bytes] with
rows padded to whole bytes, lowest bits first; products and Gather may also have 1 and convolutions 2, the
tiles of packing/tiles.py; 3:4-sparse codes and such in base 3 have no other. Convolutions add ONNX's own
attributes and flatten the weight [N, C/group, ...] to [N, K]. The numbers of rows are int64; negative ones
count from the end.
Scale and bias are float32; scales of n-bit products may be float16, too. x may be float32, float16 or
bfloat16; the arithmetic is float32 and y has the type of x:

    Int8:   s_x = max(max|x|, 1e-5) / 127     over the last axis (MatMul), per sample (Conv)
            x^  = clip(round_half_even(x / s_x), -127, 127)
            y   = float(x^ . q) * (s_x * scale) + bias
    Float:  y   = (x . q) * scale + bias

Of n-bit products every `group_size` columns of a row share a scale (the last of its groups may have fewer).
It is a multiple of 16, or of 32 with one bit, whose codes are -1 and 1. Groups g are added up in their order,
each step in float32:

    Int8:        y = p_0 + p_1 + ... + bias, p_g = float(x^_g . q_g) * (s_x * scale_g)
    Int8Blocks:  the same, with s_x of the activations of each group instead of the whole row
    Float:       y = sum of (x_g . q_g) * scale_g, in any order, + bias

A sum of integer products is exact in float32 while it stays below 2^24: K < 132,000 for ternary and binary.
A row (sample) that holds a NaN or an infinity gives NaN in all its outputs under Int8. The bodies leave out
the clip, which never does anything: |x / s_x| rounds to 127 at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hybridkit.exporting import bodies

if TYPE_CHECKING:
    import onnx

DOMAIN: Final = "hybridkit"
DOMAIN_VERSION: Final = 1
ROW_MAJOR: Final = 0
TILED: Final = {"MatMul": 1, "Conv": 2}  # the layout of tiles, by the kind of product
GATHER: Final = "Gather"  # of rows of codes that a product reads, too
MIN_OPSET: Final = 18  # BitwiseAnd, and ReduceMax with its axes as an input

_CONV_ATTRIBUTES: Final = ("kernel_shape", "strides", "pads", "dilations", "group")


@dataclass(frozen=True, slots=True)
class Storage:
    """How a byte holds codes: 8 / bits unsigned digits d, lowest first; a code is step * d + offset."""

    prefix: str  # of the operators that read it
    codec: str  # of packing, whose bytes are layout 0
    bits: int
    step: int
    offset: int
    stems: tuple[str, ...]

    @property
    def grouped(self) -> bool:
        """Whether products have a scale for each group."""
        return self.prefix.startswith("NBit")


_ALL_STEMS: Final = ("MatMulInt8", "MatMulFloat", "ConvInt8", "ConvFloat", GATHER, "Unpack")
_NBIT_STEMS: Final = ("MatMulInt8", "MatMulInt8Blocks", "MatMulFloat", GATHER, "Unpack")
_ALL: Final = (
    Storage("Ternary", "two-bit", 2, 1, -1, _ALL_STEMS),
    Storage("Binary", "one-bit", 1, 2, -1, _ALL_STEMS),
    Storage("NBit1", "one-bit", 1, 2, -1, _NBIT_STEMS),
    Storage("NBit2", "nbit2", 2, 1, -2, _NBIT_STEMS),
    Storage("NBit4", "nbit4", 4, 1, -8, _NBIT_STEMS),
    Storage("NBit8", "nbit8", 8, 1, -128, _NBIT_STEMS),
)
STORAGES: Final = {storage.prefix: storage for storage in _ALL}
SPARSE34: Final = "Sparse34"
BASE3: Final = "Base3"
DENSE: Final = {SPARSE34: "sparse34", BASE3: "base3"}  # codecs of fewer than two bits, by prefix; layout 0
CACHED_ATTENTION: Final = "CachedAttention"
_ATTENTION_ATTRIBUTES: Final = ("num_heads", "kv_num_heads", "scale", "softcap", "local_window_size")
_ATTENTION_INPUTS: Final = ("query", "key", "value", "past_key", "past_value", "last", "total")
_DENSE_BODIES: Final = {
    f"{SPARSE34}MatMulInt8": bodies.SPARSE34_CODES + bodies.MATMUL["Int8"],
    f"{SPARSE34}MatMulFloat": bodies.SPARSE34_CODES + bodies.MATMUL["Float"],
    f"{BASE3}MatMulInt8": bodies.BASE3_CODES + bodies.MATMUL["Int8"],
}
_OPERATORS: Final = {s.prefix + stem: (s, stem) for s in STORAGES.values() for stem in s.stems}


def storage_of(codec: str) -> Storage:
    """How operators read the codes of a packing codec that have one scale for each row."""
    return next(storage for storage in _ALL if storage.codec == codec)


def attribute_names(operator: str) -> tuple[str, ...]:
    """The attributes of an operator, all of them required."""
    if operator == CACHED_ATTENTION:
        return _ATTENTION_ATTRIBUTES
    if operator in bodies.REPACKS:
        return ("K", "first")
    if operator in _DENSE_BODIES:
        return ("K", "N", "layout")
    storage, stem = _OPERATORS[operator]
    if stem == "Unpack":
        return ("K", "layout")
    if stem == GATHER:
        return ("K", "N", "layout")
    more = ("group_size",) if storage.grouped else _CONV_ATTRIBUTES if stem.startswith("Conv") else ()
    return ("K", "N", "layout", *more)


def input_names(operator: str) -> tuple[str, ...]:
    """The inputs of an operator, all of them required."""
    if operator == CACHED_ATTENTION:
        return _ATTENTION_INPUTS
    if operator.endswith(GATHER):
        return ("x", "codes")
    alone = operator in bodies.REPACKS or operator.endswith("Unpack")
    return ("codes",) if alone else ("x", "codes", "scale", "bias")


def function(operator: str, opset: int) -> onnx.FunctionProto:
    """The local function of `operator` (`TernaryMatMulInt8`) for a model of the given opset, at least 18."""
    import onnx

    attributes, inputs = ", ".join(attribute_names(operator)), ", ".join(input_names(operator))
    outputs, imports = "y", f'"" : {opset}'
    if operator == CACHED_ATTENTION:
        body, outputs = bodies.ATTENTION, "y, present_key, present_value"
        imports += ', "com.microsoft" : 1'
    else:
        whole = bodies.REPACKS.get(operator) or _DENSE_BODIES.get(operator)
        body = whole or _body(*_OPERATORS[operator])
    text = f"""
    <domain: "{DOMAIN}", opset_import: [{imports}]>
    {operator} <{attributes}> ({inputs}) => ({outputs}) {{
        {body}
    }}"""
    return onnx.parser.parse_function(text)


def _body(storage: Storage, stem: str) -> str:
    if stem == "Unpack":
        whole_bytes = storage.bits == 8
        return (bodies.BYTES if whole_bytes else _unpacked(storage)) + _codes(storage, "y")
    if stem == GATHER:
        before, _, _ = bodies.PRODUCTS["MatMul"]
        rows = bodies.BYTES_OF_ROWS + _digits(storage) + bodies.DIGITS_OF_ROWS
        return before + bodies.TILES + rows + _codes(storage, "y")
    kind = "MatMul" if stem.startswith("MatMul") else "Conv"
    before, after, product = bodies.PRODUCTS[kind]
    product = bodies.GROUPED if storage.grouped else product
    mode = stem.removeprefix(kind)
    matrix = bodies.TILES + bodies.ALL_BYTES + _digits(storage) + bodies.ROWS
    return before + matrix + after + _codes(storage, "q") + product[mode]


def _unpacked(storage: Storage) -> str:
    """`codes` [..., bytes] to `kept` digits [..., K]."""
    return bodies.UNPACK_BEFORE + _digits(storage) + bodies.UNPACK_AFTER


def _digits(storage: Storage) -> str:
    """`bytes` [...] to `digits` [..., 8 / bits]."""
    shifts = range(0, 8, storage.bits)
    return f"""
        shifts = Constant <value = uint8[{len(shifts)}] {{{", ".join(map(str, shifts))}}}> ()
        mask = Constant <value = uint8[1] {{{(1 << storage.bits) - 1}}}> ()
        whole = Unsqueeze (bytes, last_axis)
        shifted = BitShift <direction = "RIGHT"> (whole, shifts)
        digits = BitwiseAnd (shifted, mask)
    """


def _codes(storage: Storage, result: str) -> str:
    """`kept` digits to float32 codes."""
    scaled = "digit" if storage.step == 1 else "doubled"
    return f"""
        digit = Cast <to = 1> (kept)
        {"" if storage.step == 1 else "doubled = Add (digit, digit)"}
        offset = Constant <value_float = {storage.offset}.0> ()
        {result} = Add ({scaled}, offset)
    """
