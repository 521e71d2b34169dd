"""Where heads lie in a cache: strides in units of a common factor."""

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
