"""Asking L2 for a KV tile before it is loaded, in the two forms that PTX has.

Sources: PTX ISA, "prefetch, prefetchu" and "cp.async.bulk.prefetch.L2" (sm_90 and later: 16-byte aligned address,
size a multiple of 16 bytes); arXiv 2504.06319 for the use of it in decode attention. An inline-asm result must be
used or the statement marked impure, hence ``is_pure=False`` and a dummy output.

EVICTION says what L2 is to make of a tile: "normal"; "last", which is to stay longest; or "first", which is to go first
and which a line cannot ask for. Sources: PTX ISA, "prefetch" (``.L2::evict_last``), "createpolicy".
"""

import triton
import triton.language as tl


@triton.jit
def prefetch_lines_l2(tile_ptr, rows, row_stride, DIM: tl.constexpr, LINES: tl.constexpr, LINE_ELEMENTS: tl.constexpr):
    """One ``prefetch.global.L2`` per 128-byte line of the rows of a tile.

    ``rows`` (BLOCK,) are row numbers relative to ``tile_ptr``; LINES, a power of two, covers DIM elements.
    """
    columns = tl.minimum(tl.arange(0, LINES) * LINE_ELEMENTS, DIM - 1)
    lines = tile_ptr + rows[:, None] * row_stride + columns[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def prefetch_rows_l2(tile_ptr, rows, row_stride, ROW_BYTES: tl.constexpr):
    """One ``cp.async.bulk.prefetch.L2`` per row, for tiles whose rows are not adjacent in memory."""
    starts = tile_ptr + rows * row_stride
    sizes = tl.zeros_like(rows).to(tl.int32) + ROW_BYTES
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [starts, sizes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_span_l2(tile_ptr, span_bytes):
    """One ``cp.async.bulk.prefetch.L2`` for a whole contiguous tile, issued by one elected thread."""
    one = tl.zeros([1], dtype=tl.int32)
    start = tile_ptr + one
    size = one + span_bytes
    tl.inline_asm_elementwise(
        """{
        .reg .pred elected;
        .reg .u32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 elected, thread, 0;
        @elected cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [start, size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_lasting_lines_l2(
    tile_ptr, rows, row_stride, DIM: tl.constexpr, LINES: tl.constexpr, LINE_ELEMENTS: tl.constexpr
):  # fmt: skip
    """As ``prefetch_lines_l2``, to be evicted last."""
    columns = tl.minimum(tl.arange(0, LINES) * LINE_ELEMENTS, DIM - 1)
    lines = tile_ptr + rows[:, None] * row_stride + columns[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2::evict_last [$1]; mov.u32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def l2_policy(like, EVICTION: tl.constexpr):
    """A cache policy for each element of ``like``, int64: all that it is used for goes first or last, as EVICTION is
    "first" or "last"."""
    if EVICTION == "last":
        policy = tl.inline_asm_elementwise(
            "createpolicy.fractional.L2::evict_last.b64 $0, 1.0; // $1",
            "=l,r", [like], dtype=tl.int64, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        policy = tl.inline_asm_elementwise(
            "createpolicy.fractional.L2::evict_first.b64 $0, 1.0; // $1",
            "=l,r", [like], dtype=tl.int64, is_pure=True, pack=1,
        )  # fmt: skip
    return policy


@triton.jit
def prefetch_rows_by_policy_l2(tile_ptr, rows, row_stride, ROW_BYTES: tl.constexpr, EVICTION: tl.constexpr):
    """As ``prefetch_rows_l2``, to be evicted as EVICTION says."""
    starts = tile_ptr + rows * row_stride
    sizes = tl.zeros_like(rows).to(tl.int32) + ROW_BYTES
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global.L2::cache_hint [$1], $2, $3; mov.u32 $0, 0;",
        "=r,l,r,l",
        [starts, sizes, l2_policy(sizes, EVICTION)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_span_by_policy_l2(tile_ptr, span_bytes, EVICTION: tl.constexpr):
    """As ``prefetch_span_l2``, to be evicted as EVICTION says."""
    one = tl.zeros([1], dtype=tl.int32)
    start = tile_ptr + one
    size = one + span_bytes
    tl.inline_asm_elementwise(
        """{
        .reg .pred elected;
        .reg .u32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 elected, thread, 0;
        @elected cp.async.bulk.prefetch.L2.global.L2::cache_hint [$1], $2, $3;
        mov.u32 $0, 0;
        }""",
        "=r,l,r,l",
        [start, size, l2_policy(size, EVICTION)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_tile_l2(
    base_ptr,
    first,
    end,
    row_stride,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BULK: tl.constexpr,
    EVICTION: tl.constexpr,
    ROWS_ADJACENT: tl.constexpr,
):
    """Ask L2 for rows [first, first + BLOCK_KV) of one head's K or V, never beyond row ``end``.

    Rows past the end are clamped onto the last valid one: asking for a line twice costs less than a branch.
    """
    ELEMENT_BYTES: tl.constexpr = base_ptr.dtype.element_ty.primitive_bitwidth // 8
    if first < end:
        tile_ptr = base_ptr + tl.cast(first, tl.int64) * row_stride
        if BULK and ROWS_ADJACENT:
            count = tl.minimum(end - first, BLOCK_KV)
            if EVICTION == "normal":
                prefetch_span_l2(tile_ptr, count * (DIM * ELEMENT_BYTES))
            else:
                prefetch_span_by_policy_l2(tile_ptr, count * (DIM * ELEMENT_BYTES), EVICTION)
        else:
            rows = tl.minimum(tl.arange(0, BLOCK_KV), end - first - 1).to(tl.int64)
            if BULK:
                if EVICTION == "normal":
                    prefetch_rows_l2(tile_ptr, rows, row_stride, DIM * ELEMENT_BYTES)
                else:
                    prefetch_rows_by_policy_l2(tile_ptr, rows, row_stride, DIM * ELEMENT_BYTES, EVICTION)
            elif EVICTION == "last":
                LINE: tl.constexpr = 128 // ELEMENT_BYTES
                LINES: tl.constexpr = BLOCK_DIM // LINE if BLOCK_DIM > LINE else 1
                prefetch_lasting_lines_l2(tile_ptr, rows, row_stride, DIM, LINES, LINE)
            else:
                LINE_ELEMENTS: tl.constexpr = 128 // ELEMENT_BYTES
                if BLOCK_DIM > LINE_ELEMENTS:
                    prefetch_lines_l2(tile_ptr, rows, row_stride, DIM, BLOCK_DIM // LINE_ELEMENTS, LINE_ELEMENTS)
                else:
                    prefetch_lines_l2(tile_ptr, rows, row_stride, DIM, 1, LINE_ELEMENTS)


@triton.jit
def prefetch_gathered_l2(
    base_ptr, row_offsets, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BULK: tl.constexpr, EVICTION: tl.constexpr
):  # fmt: skip
    """Ask L2 for rows that start ``row_offsets`` elements (int64) after ``base_ptr``."""
    ELEMENT_BYTES: tl.constexpr = base_ptr.dtype.element_ty.primitive_bitwidth // 8
    if BULK:
        if EVICTION == "normal":
            prefetch_rows_l2(base_ptr, row_offsets, 1, DIM * ELEMENT_BYTES)
        else:
            prefetch_rows_by_policy_l2(base_ptr, row_offsets, 1, DIM * ELEMENT_BYTES, EVICTION)
    elif EVICTION == "last":
        LINE: tl.constexpr = 128 // ELEMENT_BYTES
        COLUMNS: tl.constexpr = BLOCK_DIM // LINE if BLOCK_DIM > LINE else 1
        prefetch_lasting_lines_l2(base_ptr, row_offsets, 1, DIM, COLUMNS, LINE)
    else:
        LINE_ELEMENTS: tl.constexpr = 128 // ELEMENT_BYTES
        LINES: tl.constexpr = BLOCK_DIM // LINE_ELEMENTS if BLOCK_DIM > LINE_ELEMENTS else 1
        prefetch_lines_l2(base_ptr, row_offsets, 1, DIM, LINES, LINE_ELEMENTS)
