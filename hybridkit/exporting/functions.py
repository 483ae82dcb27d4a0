"""The portable bodies of our operators, as ONNX local functions of the domain `hybridkit`.

A runtime that knows an operator runs its own kernel; every other one inlines the body, which consists of
stock operators. Bodies are written in ONNX's textual syntax. The operators:

    {Ternary,Binary}MatMul{Int8,Float}          x [..., K], codes, scale [N], bias [N] -> y [..., N]
    Sparse34MatMul{Int8,Float}                  the same, of 3:4-sparse codes (packing/sparse.py)
    {Ternary,Binary}Conv{Int8,Float}            x [B, C, ...], codes, scale [N], bias [N] -> y [B, N, ...]
    NBit{2,4,8}MatMul{Int8,Int8Blocks,Float}    x [..., K], codes, scale [N, groups], bias [N] -> y [..., N]
    {Ternary,Binary,NBit2,NBit4,NBit8}Unpack    codes [..., bytes] -> y float32 [..., K], integer-valued
    {Base3,Sparse34}Repack                      codes [N, bytes] -> y [N, ceil(K / 4)], layout 0
    CachedAttention                             ONNX Runtime's GroupQueryAttention, of float32

Attributes K and N give the matrix and `layout` the order of the uint8 codes: 0 is row-major, [N, bytes] with
rows padded to whole bytes, lowest bits first; products may also have 1 and convolutions 2, the tiles of
packing/tiles.py; 3:4-sparse codes have no other. Convolutions add ONNX's own attributes and flatten the
weight [N, C/group, ...] to [N, K].
Scale and bias are float32. x may be float32, float16 or bfloat16; the arithmetic is float32 and y has the
type of x:

    Int8:   s_x = max(max|x|, 1e-5) / 127     over the last axis (MatMul), per sample (Conv)
            x^  = clip(round_half_even(x / s_x), -127, 127)
            y   = float(x^ . q) * (s_x * scale) + bias
    Float:  y   = (x . q) * scale + bias

Of n-bit products every `group_size` columns of a row share a scale (the last of its groups may have fewer),
and groups g are added up in their order, each step in float32:

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

from hybridkit.packing.sparse import DECODED

if TYPE_CHECKING:
    import onnx

DOMAIN: Final = "hybridkit"
DOMAIN_VERSION: Final = 1
ROW_MAJOR: Final = 0
TILED: Final = {"MatMul": 1, "Conv": 2}  # the layout of tiles, by the kind of product
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

    @property
    def grouped(self) -> bool:
        """Whether products have a scale for each group."""
        return self.prefix.startswith("NBit")


_ALL_STEMS: Final = ("MatMulInt8", "MatMulFloat", "ConvInt8", "ConvFloat", "Unpack")
_NBIT_STEMS: Final = ("MatMulInt8", "MatMulInt8Blocks", "MatMulFloat", "Unpack")
STORAGES: Final = {  # by the name of the packing codec whose bytes are layout 0
    "two-bit": Storage("Ternary", 2, 1, -1, _ALL_STEMS),
    "one-bit": Storage("Binary", 1, 2, -1, _ALL_STEMS),
    "nbit2": Storage("NBit2", 2, 1, -2, _NBIT_STEMS),
    "nbit4": Storage("NBit4", 4, 1, -8, _NBIT_STEMS),
    "nbit8": Storage("NBit8", 8, 1, -128, _NBIT_STEMS),
}
BASE3_REPACK: Final = "Base3Repack"
SPARSE34_REPACK: Final = "Sparse34Repack"
_SPARSE_BYTES: Final = [int(((DECODED[f] + 1) << (0, 2, 4, 6)).sum()) for f in range(len(DECODED))]
SPARSE34: Final = "Sparse34"
CACHED_ATTENTION: Final = "CachedAttention"
_ATTENTION_ATTRIBUTES: Final = ("num_heads", "kv_num_heads", "scale", "softcap", "local_window_size")
_ATTENTION_INPUTS: Final = ("query", "key", "value", "past_key", "past_value", "last", "total")
_SPARSE34_MODES: Final = {f"{SPARSE34}MatMul{mode}": mode for mode in ("Int8", "Float")}
_OPERATORS: Final = {s.prefix + stem: (s, stem) for s in STORAGES.values() for stem in s.stems}


def attribute_names(operator: str) -> tuple[str, ...]:
    """The attributes of an operator, all of them required."""
    if operator == CACHED_ATTENTION:
        return _ATTENTION_ATTRIBUTES
    if operator in _REPACKS:
        return ("K", "first")
    if operator in _SPARSE34_MODES:
        return ("K", "N", "layout")
    storage, stem = _OPERATORS[operator]
    if stem == "Unpack":
        return ("K", "layout")
    more = ("group_size",) if storage.grouped else _CONV_ATTRIBUTES if stem.startswith("Conv") else ()
    return ("K", "N", "layout", *more)


def input_names(operator: str) -> tuple[str, ...]:
    """The inputs of an operator, all of them required."""
    if operator == CACHED_ATTENTION:
        return _ATTENTION_INPUTS
    alone = operator in _REPACKS or operator.endswith("Unpack")
    return ("codes",) if alone else ("x", "codes", "scale", "bias")


def function(operator: str, opset: int) -> onnx.FunctionProto:
    """The local function of `operator` (`TernaryMatMulInt8`) for a model of the given opset, at least 18."""
    import onnx

    attributes, inputs = ", ".join(attribute_names(operator)), ", ".join(input_names(operator))
    outputs, imports = "y", f'"" : {opset}'
    if operator == CACHED_ATTENTION:
        body, outputs = _ATTENTION, "y, present_key, present_value"
        imports += ', "com.microsoft" : 1'
    elif operator in _SPARSE34_MODES:
        body = _SPARSE34_CODES + _MATMUL[_SPARSE34_MODES[operator]]
    else:
        body = _REPACKS.get(operator) or _body(*_OPERATORS[operator])
    text = f"""
    <domain: "{DOMAIN}", opset_import: [{imports}]>
    {operator} <{attributes}> ({inputs}) => ({outputs}) {{
        {body}
    }}"""
    return onnx.parser.parse_function(text)


def _body(storage: Storage, stem: str) -> str:
    if stem == "Unpack":
        whole_bytes = storage.bits == 8
        return (_BYTES if whole_bytes else _unpacked(storage)) + _codes(storage, "y")
    kind = "MatMul" if stem.startswith("MatMul") else "Conv"
    before, after, product = _PRODUCTS[kind]
    product = _GROUPED if storage.grouped else product
    mode = stem.removeprefix(kind)
    return before + _TILES + _digits(storage) + _ROWS + after + _codes(storage, "q") + product[mode]


def _unpacked(storage: Storage) -> str:
    """`codes` [..., bytes] to `kept` digits [..., K]."""
    return _UNPACK_BEFORE + _digits(storage) + _UNPACK_AFTER


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


# Of the past [B, kv_heads, P, D] and new tokens; see exporting/genai/attention.py. The cast does nothing but
# tell onnx's checker a type, which knows none of what other domains give.
_ATTENTION = """
        found, present_key, present_value = com.microsoft.GroupQueryAttention <
            num_heads: int = @num_heads, kv_num_heads: int = @kv_num_heads, scale: float = @scale,
            softcap: float = @softcap, local_window_size: int = @local_window_size
        > (query, key, value, past_key, past_value, last, total)
        y = Cast <to = 1> (found)
"""
_BYTES = """
        kept = Identity (codes)
"""
_UNPACK_BEFORE = """
        last_axis = Constant <value_ints = [-1]> ()
        bytes = Identity (codes)
"""
_UNPACK_AFTER = """
        zero = Constant <value_ints = [0]> ()
        width = Constant <value_int: int = @K> ()
        width_1d = Reshape (width, last_axis)
        outer = Shape <end = -1> (codes)
        row_shape = Concat <axis = 0> (outer, last_axis)
        rows = Reshape (digits, row_shape)
        kept = Slice (rows, zero, width_1d, last_axis)
"""
# A byte holds five digits of base 3, the lowest first; `first` is the digit of two bits that 0 becomes.
_BASE3 = """
        last_axis = Constant <value_ints = [-1]> ()
        wide = Cast <to = 6> (codes)
        whole = Unsqueeze (wide, last_axis)
        powers = Constant <value = int32[5] {1, 3, 9, 27, 81}> ()
        shifted = Div (whole, powers)
        three = Constant <value = int32[1] {3}> ()
        of_base = Mod (shifted, three)
        first_digit = Constant <value_int: int = @first> ()
        first_wide = Cast <to = 6> (first_digit)
        digits = Add (of_base, first_wide)
        row_shape = Constant <value_ints = [0, -1]> ()
        rows = Reshape (digits, row_shape)
        zero = Constant <value_ints = [0]> ()
        width = Constant <value_int: int = @K> ()
        width_1d = Reshape (width, last_axis)
        kept = Slice (rows, zero, width_1d, last_axis)
        four = Constant <value_ints = [4]> ()
        less = Sub (zero, width_1d)
        short = Mod (less, four)
        padding = Concat <axis = 0> (zero, short)
        padded = Pad (kept, padding, , last_axis)
        byte_shape = Constant <value_ints = [0, -1, 4]> ()
        fours = Reshape (padded, byte_shape)
        places = Constant <value = int32[4] {1, 4, 16, 64}> ()
        placed = Mul (fours, places)
        bytes = ReduceSum <keepdims = 0> (placed, last_axis)
        y = Cast <to = 2> (bytes)
"""
# `codes` [N, bytes] to the `field`s of five bits in them, int32 [N, blocks]
_SPARSE34_FIELDS = """
        last_axis = Constant <value_ints = [-1]> ()
        whole = Unsqueeze (codes, last_axis)
        shifts = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
        lowest = Constant <value = uint8[1] {1}> ()
        shifted = BitShift <direction = "RIGHT"> (whole, shifts)
        bits = BitwiseAnd (shifted, lowest)
        row_shape = Constant <value_ints = [0, -1]> ()
        rows = Reshape (bits, row_shape)
        width = Constant <value_int: int = @K> ()
        width_1d = Reshape (width, last_axis)
        zero = Constant <value_ints = [0]> ()
        three = Constant <value_ints = [3]> ()
        four = Constant <value_ints = [4]> ()
        five = Constant <value_ints = [5]> ()
        beyond = Add (width_1d, three)
        blocks = Div (beyond, four)
        used = Mul (blocks, five)
        kept = Slice (rows, zero, used, last_axis)
        field_shape = Concat <axis = 0> (zero, blocks, five)
        fields = Reshape (kept, field_shape)
        wide = Cast <to = 6> (fields)
        places = Constant <value = int32[5] {1, 2, 4, 8, 16}> ()
        placed = Mul (wide, places)
        field = ReduceSum <keepdims = 0> (placed, last_axis)
"""
_SPARSE34_CODES = f"""
        {_SPARSE34_FIELDS}
        table = Constant <value = float[32, 4] {{{", ".join(map(str, DECODED.flatten().astype(float)))}}}> ()
        fours = Gather <axis = 0> (table, field)
        in_rows = Reshape (fours, row_shape)
        q = Slice (in_rows, zero, width_1d, last_axis)
"""
# Four codes are one byte of two-bit codes. `first` is added to each of its digits; those of columns that are
# not there are 0.
_SPARSE34 = f"""
        {_SPARSE34_FIELDS}
        table = Constant <value = int32[32] {{{", ".join(map(str, _SPARSE_BYTES))}}}> ()
        ternary = Gather <axis = 0> (table, field)
        first_digit = Constant <value_int: int = @first> ()
        first_wide = Cast <to = 6> (first_digit)
        ones = Constant <value = int32[1] {{85}}> ()
        more = Mul (first_wide, ones)
        sums = Add (ternary, more)
        bytes = Cast <to = 2> (sums)
        no_axes = Constant <value_int = 0> ()
        step = Constant <value_int = 1> ()
        count = Squeeze (blocks)
        places_of_blocks = Range (no_axes, count, step)
        before = Mul (places_of_blocks, four)
        left = Sub (width_1d, before)
        there = Min (left, four)
        masks = Constant <value = uint8[5] {{0, 3, 15, 63, 255}}> ()
        mask = Gather <axis = 0> (masks, there)
        y = BitwiseAnd (bytes, mask)
"""
_REPACKS: Final = {BASE3_REPACK: _BASE3, SPARSE34_REPACK: _SPARSE34}
# Row-major codes are tiles of one row and one column, in one group, with one position in the kernel.
# So one text serves every layout. `tiled` is 0 or 1.
_TILES = """
        last_axis = Constant <value_ints = [-1]> ()
        height = Constant <value_int: int = @N> ()
        width = Constant <value_int: int = @K> ()
        height_1d = Reshape (height, last_axis)
        width_1d = Reshape (width, last_axis)
        fifteen = Constant <value_ints = [15]> ()
        three = Constant <value_ints = [3]> ()
        more_rows = Mul (tiled, fifteen)
        more_columns = Mul (tiled, three)
        tile_rows = Add (more_rows, one)
        tile_columns = Add (more_columns, one)
        group_rows = Div (height_1d, groups)
        rounded_up = Add (group_rows, more_rows)
        group_tiles = Div (rounded_up, tile_rows)
        all_tiles = Mul (group_tiles, groups)
        tiles_shape = Concat <axis = 0> (all_tiles, last_axis, tile_rows, tile_columns)
        bytes = Reshape (codes, tiles_shape)
"""
_ROWS = """
        ordered = Transpose <perm = [0, 2, 1, 4, 3]> (digits)
        padded_rows = Mul (group_tiles, tile_rows)
        rows_shape = Concat <axis = 0> (groups, padded_rows, last_axis)
        rows = Reshape (ordered, rows_shape)
        corner = Constant <value_ints = [0, 0]> ()
        group_shape = Concat <axis = 0> (group_rows, width_1d)
        matrix_axes = Constant <value_ints = [1, 2]> ()
        in_groups = Slice (rows, corner, group_shape, matrix_axes)
"""
_MATMUL_BEFORE = """
        one = Constant <value_ints = [1]> ()
        groups = Identity (one)
        layout = Constant <value_int: int = @layout> ()
        tiled = Mul (layout, one)
"""
_MATMUL_AFTER = """
        first_axis = Constant <value_ints = [0]> ()
        kept = Squeeze (in_groups, first_axis)
"""
_CONV_BEFORE = """
        one = Constant <value_ints = [1]> ()
        layout = Constant <value_int: int = @layout> ()
        two = Constant <value_ints = [2]> ()
        tiled = Div (layout, two)
        group = Constant <value_int: int = @group> ()
        other_groups = Sub (group, one)
        extra_groups = Mul (other_groups, tiled)
        groups = Add (extra_groups, one)
        kernel = Constant <value_ints: ints = @kernel_shape> ()
        positions = ReduceProd <keepdims = 1> (kernel)
        other_positions = Sub (positions, one)
        extra_taps = Mul (other_positions, tiled)
        taps = Add (extra_taps, one)
"""
_CONV_AFTER = """
        by_tap_shape = Concat <axis = 0> (height_1d, taps, last_axis)
        by_tap = Reshape (in_groups, by_tap_shape)
        by_channel = Transpose <perm = [0, 2, 1]> (by_tap)
        per_row = Constant <value_ints = [0, -1]> ()
        weight_shape = Concat <axis = 0> (per_row, kernel)
        kept = Reshape (by_channel, weight_shape)
"""
_SCALE_X = """
        magnitude = Abs ({x})
        reduced_axis = Constant <value_ints = [-1]> ()
        largest = ReduceMax <keepdims = 1> (magnitude, reduced_axis)
        least = Constant <value_float = 1e-5> ()
        bounded = Max (largest, least)
        top = Constant <value_float = 127.0> ()
        {s_x} = Div (bounded, top)
"""
_ROUND_X = """
        divided = Div (x_float, s_x)
        x_int8 = Round (divided)
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
# x to [groups, rows, size] and q to [groups, size, N], both with zeros behind where the last group is short.
# The sums of CumSum come one after the other, as the kernels add.
_IN_GROUPS = """
        x_float = Cast <to = 1> (x)
        size = Constant <value_int: int = @group_size> ()
        size_1d = Reshape (size, last_axis)
        before_next = Sub (size_1d, one)
        beyond = Add (width_1d, before_next)
        group_count = Div (beyond, size_1d)
        all_columns = Mul (group_count, size_1d)
        short = Sub (all_columns, width_1d)
        none = Sub (one, one)
        padding = Concat <axis = 0> (none, short)
        group_form = Concat <axis = 0> (last_axis, group_count, size_1d)
        q_padded = Pad (q, padding, , last_axis)
        q_groups = Reshape (q_padded, group_form)
        last_group = Sub (group_count, one)
        outer = Shape <end = -1> (x)
        y_shape = Concat <axis = 0> (outer, height_1d)
        flat_form = Concat <axis = 0> (last_axis, width_1d)
"""
_X_IN_GROUPS = """
        x_flat = Reshape ({x}, flat_form)
        x_padded = Pad (x_flat, padding, , last_axis)
        {groups} = Reshape (x_padded, group_form)
"""
_SUM_OF_GROUPS = """
        w = Transpose <perm = [1, 2, 0]> (q_groups)
        x_first = Transpose <perm = [1, 0, 2]> (x_int8)
        sum = MatMul (x_first, w)
        scale_first = Transpose <perm = [1, 0]> (scale)
        s_w = Unsqueeze (scale_first, one)
        s = Mul (s_x, s_w)
        products = Mul (sum, s)
        so_far = CumSum (products, none)
        total = Gather <axis = 0> (so_far, last_group)
        result = Add (total, bias)
        in_shape = Reshape (result, y_shape)
        y = CastLike (in_shape, x)
"""
_GROUPED = {
    "Int8": f"""
        {_IN_GROUPS}
        {_SCALE_X.format(x="x_float", s_x="s_row")}
        divided = Div (x_float, s_row)
        rounded = Round (divided)
        {_X_IN_GROUPS.format(x="rounded", groups="x_int8")}
        per_row = Constant <value_ints = [1, -1, 1]> ()
        s_x = Reshape (s_row, per_row)
        {_SUM_OF_GROUPS}
    """,
    "Int8Blocks": f"""
        {_IN_GROUPS}
        {_X_IN_GROUPS.format(x="x_float", groups="x_groups")}
        {_SCALE_X.format(x="x_groups", s_x="s_group")}
        divided = Div (x_groups, s_group)
        x_int8 = Round (divided)
        s_x = Transpose <perm = [1, 0, 2]> (s_group)
        {_SUM_OF_GROUPS}
    """,
    "Float": f"""
        {_IN_GROUPS}
        per_group = Unsqueeze (scale, last_axis)
        scaled = Mul (q_groups, per_group)
        whole_rows = Concat <axis = 0> (height_1d, last_axis)
        rows_padded = Reshape (scaled, whole_rows)
        matrix = Slice (rows_padded, none, width_1d, one)
        w = Transpose <perm = [1, 0]> (matrix)
        sum = MatMul (x_float, w)
        result = Add (sum, bias)
        y = CastLike (result, x)
    """,
}
# Ones in place of the kernel's sizes give shapes of the right rank, for any number of spatial axes.
_CONV_WEIGHT = """
        x_float = Cast <to = 1> (x)
        ones = Div (kernel, kernel)
        per_channel = Constant <value_ints = [1, -1]> ()
        channel_shape = Concat <axis = 0> (per_channel, ones)
        s_w = Reshape (scale, channel_shape)
        b = Reshape (bias, channel_shape)
"""
_CONV_CALL = """
        sum = Conv <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
                    dilations: ints = @dilations, group: int = @group> ({x}, q)
"""
# ONNX Runtime's ReduceMax may pass over a NaN, and a convolution spreads one over its neighbourhood only.
# The sum of 0 * x is 0 for numbers and NaN for a sample that holds anything else.
_CONV = {
    "Int8": f"""
        {_CONV_WEIGHT}
        samples = Flatten <axis = 1> (x_float)
        {_SCALE_X.format(x="samples", s_x="s_x_numbers")}
        nothing = Constant <value_float = 0.0> ()
        not_numbers = Mul (samples, nothing)
        not_a_number = ReduceSum <keepdims = 1> (not_numbers, reduced_axis)
        s_x_flat = Add (s_x_numbers, not_a_number)
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
_PRODUCTS: Final = {
    "MatMul": (_MATMUL_BEFORE, _MATMUL_AFTER, _MATMUL),
    "Conv": (_CONV_BEFORE, _CONV_AFTER, _CONV),
}
