"""Where heads lie in a cache, strides in units of a common factor; and which query rows share one."""

import triton
import triton.language as tl


@triton.jit
def head_start(
    base_ptr, sequence, kv_head, batch_stride, head_stride, STRIDE_UNIT: tl.constexpr, PAGED: tl.constexpr
):  # fmt: skip
    """Where one head of one sequence starts in K or V; of a paged cache, where that head starts in page 0."""
    if PAGED:
        batch_stride = 0
    return base_ptr + (sequence.to(tl.int64) * batch_stride + kv_head.to(tl.int64) * head_stride) * STRIDE_UNIT


@triton.jit
def rows_of_tile(row_tile, kv_head, q_len, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of one tile of the query rows that share a KV head: their numbers, whether there are such rows, their query heads
    and their queries."""
    rows = GROUP * q_len
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    return row, row < rows, kv_head * GROUP + row // q_len, row % q_len
