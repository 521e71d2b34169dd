"""Paged decode attention as in arXiv 2504.06319, rebuilt to measure what prefetching the next KV tile into L2 is worth.

The setting of that paper is vLLM's paged attention: one program for each query head and sequence, one KV block of 16
keys at a time, gathered through a block table; no software pipelining, no sharing of K and V between the query heads of
a group, no splits. Nothing of ours is meant to run this way: only ``kvprefetch bench paper`` launches it.

What the paper leaves open is settled in the kernel's favour. A block's K and V are asked for together, before either is
used. Each of the 16 places in a block keeps a softmax of its own (maximum, total, weighted sum), and they are combined
once at the end, so that nothing in the loop waits for another warp. Products and sums are fp32.

A statement that prefetches also changes the code around it: the assembler sinks a block's loads to where they are used,
and a branch in their way keeps them together. So depth, and whether a prefetch is issued at all, are plain arguments:
next tile, control and "switched off" are launches of one binary, and they differ by what the prefetches do alone.

Sources: arXiv 2504.06319, section 3 (asynchronous KV cache prefetching); vLLM's csrc/attention/attention_kernels.cuh.
"""

import triton
import triton.language as tl

from .prefetch import prefetch_span_l2
from .rounding import round_to
from .softmax import finite_maximum


@triton.jit
def prefetch_block(
    k_ptr, v_ptr, table_ptr, block, length, kv_head, kv_heads,
    BLOCK_KV: tl.constexpr, HEAD_DIM: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Ask L2 for the K and V of block number ``block`` of a sequence: one bulk prefetch each, by one elected thread, of
    no row beyond its first ``length`` keys; of nothing where the block lies beyond them. Nothing in the interpreter,
    which has no inline assembly."""
    ROW_BYTES: tl.constexpr = HEAD_DIM * k_ptr.dtype.element_ty.primitive_bitwidth // 8
    if not EMULATED:
        keys = length - block * BLOCK_KV
        if keys > 0:
            page = tl.load(table_ptr + block).to(tl.int64)
            offset = (page * kv_heads + kv_head) * (BLOCK_KV * HEAD_DIM)
            span_bytes = tl.minimum(keys, BLOCK_KV) * ROW_BYTES
            prefetch_span_l2(k_ptr + offset, span_bytes)
            prefetch_span_l2(v_ptr + offset, span_bytes)


# Integers are not specialised: one binary serves every model, batch, context and depth.
@triton.jit(do_not_specialize=["group", "kv_heads", "table_stride", "depth", "issue"])
def paper_decode(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    lengths_ptr,
    out_ptr,
    score_scale,
    group,
    kv_heads,
    table_stride,
    depth,
    issue,
    HEAD_DIM: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    PREFETCH: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Grid (query_heads, batch). All tensors are contiguous.

    q and out (batch, query_heads, HEAD_DIM); k and v (pages, kv_heads, BLOCK_KV, HEAD_DIM); table int32
    (batch, table_stride): the page of each block of a sequence; lengths int32 (batch,): keys held, at least 1.
    ``score_scale`` is the softmax scale times log2(e). HEAD_DIM and BLOCK_KV are powers of two.

    With PREFETCH, the block ``depth`` places ahead is asked into L2 while ``issue`` is 1; depth 0 is the control: the
    block that has just been asked for. With ``issue`` 0 the same code runs and no prefetch is due.
    """
    head = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    kv_head = head // group
    row = (sequence * tl.num_programs(0) + head) * HEAD_DIM
    length = tl.load(lengths_ptr + sequence)
    blocks = (length + BLOCK_KV - 1) // BLOCK_KV
    table_ptr += sequence * table_stride

    places = tl.arange(0, BLOCK_KV)
    columns = tl.arange(0, HEAD_DIM)
    tile = places[:, None] * HEAD_DIM + columns[None, :]
    q = tl.load(q_ptr + row + columns).to(tl.float32) * score_scale

    maximum = tl.full([BLOCK_KV], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_KV], tl.float32)
    accumulator = tl.zeros([BLOCK_KV, HEAD_DIM], tl.float32)

    prefetched_length = length * issue
    if PREFETCH:
        for near in range(1, depth):
            prefetch_block(
                k_ptr, v_ptr, table_ptr, near, prefetched_length, kv_head, kv_heads, BLOCK_KV, HEAD_DIM, EMULATED
            )
    for block in tl.range(0, blocks, num_stages=1):
        page = tl.load(table_ptr + block).to(tl.int64)
        offset = (page * kv_heads + kv_head) * (BLOCK_KV * HEAD_DIM)
        inside = block * BLOCK_KV + places < length
        k = tl.load(k_ptr + offset + tile, mask=inside[:, None], other=0.0)
        v = tl.load(v_ptr + offset + tile, mask=inside[:, None], other=0.0)
        if PREFETCH:
            ahead = block + depth
            prefetch_block(
                k_ptr, v_ptr, table_ptr, ahead, prefetched_length, kv_head, kv_heads, BLOCK_KV, HEAD_DIM, EMULATED
            )
        scores = tl.where(inside, tl.sum(q[None, :] * k.to(tl.float32), 1), float("-inf"))
        new_maximum = tl.maximum(maximum, scores)
        reference = finite_maximum(new_maximum)
        shrink = tl.exp2(maximum - reference)
        weight = tl.exp2(scores - reference)
        total = total * shrink + weight
        accumulator = accumulator * shrink[:, None] + weight[:, None] * v.to(tl.float32)
        maximum = new_maximum

    share = tl.exp2(maximum - finite_maximum(tl.max(maximum, 0)))
    result = tl.sum(accumulator * share[:, None], 0) / tl.sum(total * share, 0)
    tl.store(out_ptr + row + columns, round_to(result, out_ptr.dtype.element_ty, EMULATED))
