"""Where heads lie in a cache: strides in units of a common factor."""

import triton
import triton.language as tl


@triton.jit
def head_start(base_ptr, sequence, kv_head, batch_stride, head_stride, STRIDE_UNIT: tl.constexpr):
    """Where one head of one sequence starts in K or V."""
    return base_ptr + (sequence.to(tl.int64) * batch_stride + kv_head.to(tl.int64) * head_stride) * STRIDE_UNIT
