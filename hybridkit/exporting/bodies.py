"""Parts of the portable bodies of functions.py, in ONNX's textual syntax."""

from __future__ import annotations

from typing import Final

from hybridkit.packing.sparse import DECODED

BASE3_REPACK: Final = "Base3Repack"
SPARSE34_REPACK: Final = "Sparse34Repack"
_SPARSE_BYTES: Final = [int(((DECODED[f] + 1) << (0, 2, 4, 6)).sum()) for f in range(len(DECODED))]

# Of the past [B, kv_heads, P, D] and new tokens; see exporting/genai/attention.py. The cast does nothing but
# tell onnx's checker a type, which knows none of what other domains give.
ATTENTION = """
        found, present_key, present_value = com.microsoft.GroupQueryAttention <
            num_heads: int = @num_heads, kv_num_heads: int = @kv_num_heads, scale: float = @scale,
            softcap: float = @softcap, local_window_size: int = @local_window_size
        > (query, key, value, past_key, past_value, last, total)
        y = Cast <to = 1> (found)
"""
BYTES = """
        kept = Identity (codes)
"""
UNPACK_BEFORE = """
        last_axis = Constant <value_ints = [-1]> ()
        bytes = Identity (codes)
"""
UNPACK_AFTER = """
        zero = Constant <value_ints = [0]> ()
        width = Constant <value_int: int = @K> ()
        width_1d = Reshape (width, last_axis)
        outer = Shape <end = -1> (codes)
        row_shape = Concat <axis = 0> (outer, last_axis)
        rows = Reshape (digits, row_shape)
        kept = Slice (rows, zero, width_1d, last_axis)
"""
# `codes` [N, bytes], a byte of which is five digits of base 3, lowest first, to `kept` digits, int32 [N, K]
_BASE3_DIGITS = """
        last_axis = Constant <value_ints = [-1]> ()
        wide = Cast <to = 6> (codes)
        whole = Unsqueeze (wide, last_axis)
        powers = Constant <value = int32[5] {1, 3, 9, 27, 81}> ()
        shifted = Div (whole, powers)
        three = Constant <value = int32[1] {3}> ()
        of_base = Mod (shifted, three)
        row_shape = Constant <value_ints = [0, -1]> ()
        rows = Reshape (of_base, row_shape)
        zero = Constant <value_ints = [0]> ()
        width = Constant <value_int: int = @K> ()
        width_1d = Reshape (width, last_axis)
        kept = Slice (rows, zero, width_1d, last_axis)
"""
BASE3_CODES = f"""
        {_BASE3_DIGITS}
        digit = Cast <to = 1> (kept)
        offset = Constant <value_float = -1.0> ()
        q = Add (digit, offset)
"""
# Four digits are one byte of two-bit codes, those of columns that are not there 0; `first` is the digit of
# two bits that 0 becomes.
_BASE3 = f"""
        {_BASE3_DIGITS}
        first_digit = Constant <value_int: int = @first> ()
        first_wide = Cast <to = 6> (first_digit)
        digits = Add (kept, first_wide)
        four = Constant <value_ints = [4]> ()
        less = Sub (zero, width_1d)
        short = Mod (less, four)
        padding = Concat <axis = 0> (zero, short)
        padded = Pad (digits, padding, , last_axis)
        byte_shape = Constant <value_ints = [0, -1, 4]> ()
        fours = Reshape (padded, byte_shape)
        places = Constant <value = int32[4] {{1, 4, 16, 64}}> ()
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
SPARSE34_CODES = f"""
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
REPACKS: Final = {BASE3_REPACK: _BASE3, SPARSE34_REPACK: _SPARSE34}
# Row-major codes are tiles of one row and one column, in one group, with one position in the kernel.
# So one text serves every layout. `tiled` is 0 or 1.
TILES = """
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
"""
ALL_BYTES = """
        bytes = Reshape (codes, tiles_shape)
"""
# The bytes of a row are the same columns of one row of all blocks of a tile.
BYTES_OF_ROWS = """
        tiles = Reshape (codes, tiles_shape)
        units_shape = Concat <axis = 0> (last_axis, tile_columns)
        units = Reshape (tiles, units_shape)
        none = Sub (one, one)
        flat = Reshape (x, last_axis)
        from_end = Less (flat, none)
        from_start = Add (flat, height_1d)
        row = Where (from_end, from_start, flat)
        tile = Div (row, tile_rows)
        rows_before = Mul (tile, tile_rows)
        row_in_tile = Sub (row, rows_before)
        blocks = Shape <start = 1, end = 2> (tiles)
        units_of_tiles_before = Mul (rows_before, blocks)
        first_unit = Add (units_of_tiles_before, row_in_tile)
        nothing = Squeeze (none)
        single = Squeeze (one)
        block_count = Squeeze (blocks)
        block = Range (nothing, block_count, single)
        units_before = Mul (block, tile_rows)
        of_row = Unsqueeze (first_unit, one)
        unit = Add (of_row, units_before)
        bytes = Gather <axis = 0> (units, unit)
"""
DIGITS_OF_ROWS = """
        ordered = Transpose <perm = [0, 1, 3, 2]> (digits)
        in_byte = Shape <start = -1> (digits)
        in_unit = Mul (in_byte, tile_columns)
        padded_width = Mul (in_unit, blocks)
        padded_shape = Concat <axis = 0> (last_axis, padded_width)
        padded = Reshape (ordered, padded_shape)
        flat_rows = Slice (padded, none, width_1d, one)
        outer = Shape (x)
        y_shape = Concat <axis = 0> (outer, width_1d)
        kept = Reshape <allowzero = 1> (flat_rows, y_shape)
"""
ROWS = """
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
MATMUL = {
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
        scale_float = Cast <to = 1> (scale)
        scale_first = Transpose <perm = [1, 0]> (scale_float)
        s_w = Unsqueeze (scale_first, one)
        s = Mul (s_x, s_w)
        products = Mul (sum, s)
        so_far = CumSum (products, none)
        total = Gather <axis = 0> (so_far, last_group)
        result = Add (total, bias)
        in_shape = Reshape (result, y_shape)
        y = CastLike (in_shape, x)
"""
GROUPED = {
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
        scale_float = Cast <to = 1> (scale)
        per_group = Unsqueeze (scale_float, last_axis)
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
PRODUCTS: Final = {
    "MatMul": (_MATMUL_BEFORE, _MATMUL_AFTER, MATMUL),
    "Conv": (_CONV_BEFORE, _CONV_AFTER, _CONV),
}
