"""Numbers of a quantised cache whose scales or zeros are shared by groups of its columns, or by runs of its tokens.

No product can be scaled by those afterwards, so a tile is dequantised in registers, as PyTorch does it: in fp32, and
rounded once to the dtype of the queries.
"""

import triton
import triton.language as tl

from .rounding import round_to
from .unpack import even_columns


@triton.jit
def load_shared(
    head_ptr, keys, columns, inside, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROW_STRIDE: tl.constexpr,
    COLUMN_STRIDE: tl.constexpr,
):  # fmt: skip
    """What ROWS keys and COLUMNS columns share each, fp32 (keys, columns); 0 where not ``inside``."""
    rows = (keys // ROWS).to(tl.int64) * ROW_STRIDE
    pointers = head_ptr + rows[:, None] + (columns // COLUMNS * COLUMN_STRIDE)[None, :]
    return tl.load(pointers, mask=inside, other=0).to(tl.float32)


@triton.jit
def dequantise_tile(
    numbers, scale_ptr, zero_ptr, keys, columns, inside, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SCALE_ROW: tl.constexpr, SCALE_COLUMN: tl.constexpr, ZERO_ROW: tl.constexpr, ZERO_COLUMN: tl.constexpr,
    CENTRE: tl.constexpr, DTYPE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The values of unpacked ``numbers`` (keys, columns), CENTRE less than those that are stored, in DTYPE. GROUP says
    whether zeros are subtracted ``before`` scaling or added ``after``; a pointer of None stands for scales of 1, or for
    zeros of 0. Those two have strides of their own, 0 where one is shared by all."""
    values = numbers.to(tl.float32) + CENTRE
    zero = None
    if zero_ptr is not None:
        zero = load_shared(zero_ptr, keys, columns, inside, ROWS, COLUMNS, ZERO_ROW, ZERO_COLUMN)
        if GROUP == "before":
            values -= zero
    if scale_ptr is not None:
        values *= load_shared(scale_ptr, keys, columns, inside, ROWS, COLUMNS, SCALE_ROW, SCALE_COLUMN)
    if GROUP == "after" and zero_ptr is not None:
        values += zero
    return round_to(values, DTYPE, UPCAST)


@triton.jit
def dequantise_pair(
    even, odd, scale_ptr, zero_ptr, keys, end, DIM: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SCALE_ROW: tl.constexpr, SCALE_COLUMN: tl.constexpr,
    ZERO_ROW: tl.constexpr, ZERO_COLUMN: tl.constexpr, CENTRE: tl.constexpr, DTYPE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``dequantise_tile`` of the even and of the odd ones of DIM columns, in the order of ``even_columns``."""
    columns = even_columns(even.shape[1], DIM, FORMAT)
    inside = (keys < end)[:, None] & (tl.arange(0, even.shape[1]) < DIM // 2)[None, :]
    # Where both columns of a unit share a scale, the same loads serve them.
    odd_columns = columns if COLUMNS % 2 == 0 else columns + 1
    even = dequantise_tile(
        even, scale_ptr, zero_ptr, keys, columns, inside, GROUP, ROWS, COLUMNS, SCALE_ROW, SCALE_COLUMN, ZERO_ROW,
        ZERO_COLUMN, CENTRE, DTYPE, UPCAST,
    )  # fmt: skip
    odd = dequantise_tile(
        odd, scale_ptr, zero_ptr, keys, odd_columns, inside, GROUP, ROWS, COLUMNS, SCALE_ROW, SCALE_COLUMN, ZERO_ROW,
        ZERO_COLUMN, CENTRE, DTYPE, UPCAST,
    )  # fmt: skip
    return even, odd
