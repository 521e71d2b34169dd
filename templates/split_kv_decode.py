"""Split-KV flash decoding: each program attends one tile of query rows to one share of one KV head's valid keys.

Query heads that share a KV head are packed in one tile of BLOCK_M rows (row r is head r // q_len of the group, query
r % q_len), so that K and V are read once. Accumulation is fp32. With one split a program writes the output; with more
it writes an fp32 partial result and its softmax statistics, which ``merge_splits`` or the last program combines.

Flash decoding: https://crfm.stanford.edu/2023/10/12/flashdecoding.html. Layouts as in AttentionSpec, strides of q, k
and v in units of a common factor (as a constant, that factor tells the compiler how far loads may be widened).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .attend import attend_share, load_queries
from .heads import head_start
from .prefetch import prefetch_tile_l2
from .results import write_output, write_partial
from .split_plan import (
    active_splits,
    balanced_counts,
    balanced_split,
    guessed_begin,
    split_range,
    stream_of_tiles,
    stream_place,
    stream_sequences,
    stream_slot,
    valid_keys,
)

_RUNTIME_INTEGERS = [
    "stream_batch", "q_len", "kv_len", "row_tiles", "bounds_stride",
    "q_batch_stride", "q_head_stride", "q_row_stride",
    "k_batch_stride", "k_head_stride", "k_row_stride",
    "v_batch_stride", "v_head_stride", "v_row_stride",
    "mask_batch_stride", "mask_head_stride", "mask_row_stride", "mask_key_stride",
    "out_batch_stride", "out_head_stride", "out_row_stride", "table_stride",
]  # fmt: skip


# Integers are not specialised: a cache that grows by one key a step must not compile a kernel a step.
@triton.jit(do_not_specialize=_RUNTIME_INTEGERS)
def split_kv_decode(
    q_ptr,
    k_ptr,
    v_ptr,
    k_descriptor,
    v_descriptor,
    mask_ptr,
    bounds_ptr,
    out_ptr,
    partial_ptr,
    stats_ptr,
    arrivals_ptr,
    lengths_ptr,
    table_ptr,
    sink_ptr,
    lse_ptr,
    score_scale,
    softcap,
    stream_batch,
    q_len,
    kv_len,
    row_tiles,
    bounds_stride,
    q_batch_stride,
    q_head_stride,
    q_row_stride,
    k_batch_stride,
    k_head_stride,
    k_row_stride,
    v_batch_stride,
    v_head_stride,
    v_row_stride,
    mask_batch_stride,
    mask_head_stride,
    mask_row_stride,
    mask_key_stride,
    out_batch_stride,
    out_head_stride,
    out_row_stride,
    table_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ONE_QUERY: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SPLIT: tl.constexpr,
    Q_STRIDE_UNIT: tl.constexpr,
    KV_STRIDE_UNIT: tl.constexpr,
    K_ROW_STRIDE: tl.constexpr,
    V_ROW_STRIDE: tl.constexpr,
    OUT_STRIDE_UNIT: tl.constexpr,
    MASK: tl.constexpr,
    MASK_PER_ROW: tl.constexpr,
    CLEAN_APART: tl.constexpr,
    CAUSAL: tl.constexpr,
    TMA: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
    PREFETCH_DEPTH: tl.constexpr,
    PREFETCH_BULK: tl.constexpr,
    EVICTION: tl.constexpr,
    ROWS_ADJACENT: tl.constexpr,
    PARTITION: tl.constexpr,
    STREAMED: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    PROLOGUE_PREFETCH: tl.constexpr,
    LAUNCH_OVERLAP: tl.constexpr,
    MERGE_IN_PLACE: tl.constexpr,
    ROWS_AT_ONCE: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
    EXP2_SCALE: tl.constexpr,
    UPCAST: tl.constexpr,
    CHAINS: tl.constexpr,
    CAUSAL_TAIL: tl.constexpr,
    PAGED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILES_IN_PAGES: tl.constexpr,
    DOUBLE_SCALARS: tl.constexpr,
):
    """Grid (batch * kv_heads * row_tiles, num_splits); SPLIT says whether num_splits is more than 1.

    ``score_scale`` is the softmax scale, times log2(e) unless the mask is additive (EXP2_SCALE is 1 or log2(e)
    accordingly: scaling an additive finfo.min by log2(e) would overflow to -inf and change rows that hide everything)
    or scores are capped. ``softcap`` is None or a float, ``sink_ptr`` None or a logit per query head, ``lse`` None or
    fp32 (batch, query_heads, q_len), contiguous.
    partial is fp32 (splits of the batch, rows, VALUE_DIM), stats fp32 (splits of the batch, rows, 2): maximum and
    total. The splits of a sequence and head are adjacent: (batch * kv_heads, num_splits), or where they are balanced
    (kv_heads, batch * num_splits).

    ``lengths``, int32 or int64 (batch,), are in place of a mask and its bounds. With a CAUSAL_TAIL the last q_len keys
    of each are those of the queries: query i sees the first length - q_len + i + 1.

    CLEAN_APART, with a mask by row, has a loop of its own for tiles that the mask hides nothing in: its code would hold
    back their products.

    CHAINS is how many sums of columns a score is made of: more than one in float32, whose products are added one after
    another. Then queries and keys are as many tiles of adjacent columns.

    STREAMED programs are ``num_splits`` of each KV head and tile of query rows, whatever the batch, which is
    ``stream_batch`` sequences: the grid is (kv_heads * row_tiles, num_splits), and partial results lie as
    (kv_heads, batch + num_splits). Their prologue prefetch is of the next sequence's first tile.

    DOUBLE_SCALARS says that floats come as fp64, which is how AOTInductor passes them.

    PAGED caches are pools, k (pages, kv_heads, PAGE_SIZE, HEAD_DIM) and v likewise: their batch strides lead from page
    to page. ``table`` is int32 (batch, kv_len / PAGE_SIZE), its rows ``table_stride`` apart.
    """
    KEYS_AXIS: tl.constexpr = 0 if KEYS_FIRST else 1
    BALANCED: tl.constexpr = PARTITION == "balanced"
    if DOUBLE_SCALARS:
        score_scale = tl.cast(score_scale, tl.float32)
    # What is known is not divided by at run time: a division is thirty instructions, before anything can be loaded.
    if ONE_QUERY:
        q_len = 1
        if GROUP <= BLOCK_M:
            row_tiles = 1
    flat = tl.program_id(0)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    if not SPLIT:
        num_splits = 1
    batch = tl.num_programs(0) // (KV_HEADS * row_tiles)
    if STREAMED:
        batch = stream_batch
    row_tile = flat % row_tiles
    kv_head = flat // row_tiles % KV_HEADS
    sequence = flat // (row_tiles * KV_HEADS)
    k_row = tl.cast(k_row_stride, tl.int64) * KV_STRIDE_UNIT
    v_row = tl.cast(v_row_stride, tl.int64) * KV_STRIDE_UNIT
    # Products with strides that are known take half of the registers of a tile's addresses, and few instructions.
    if K_ROW_STRIDE > 0:
        k_row = K_ROW_STRIDE
    if V_ROW_STRIDE > 0:
        v_row = V_ROW_STRIDE
    out_batch = tl.cast(out_batch_stride, tl.int64) * OUT_STRIDE_UNIT
    out_head = tl.cast(out_head_stride, tl.int64) * OUT_STRIDE_UNIT
    out_row = tl.cast(out_row_stride, tl.int64) * OUT_STRIDE_UNIT

    if PROLOGUE_PREFETCH and not STREAMED:
        # Keys of earlier steps do not depend on the kernel before this one. Harmless where the guess is wrong, and for
        # the newest key too: L2 sees the write.
        begin = guessed_begin(kv_len, split, num_splits, BLOCK_KV, PARTITION)
        prefetch_tile_l2(
            head_start(k_ptr, sequence, kv_head, k_batch_stride, k_head_stride, KV_STRIDE_UNIT, False), begin, kv_len,
            k_row, HEAD_DIM, BLOCK_D, BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT,
        )  # fmt: skip
        prefetch_tile_l2(
            head_start(v_ptr, sequence, kv_head, v_batch_stride, v_head_stride, KV_STRIDE_UNIT, False), begin, kv_len,
            v_row, VALUE_DIM, BLOCK_DV, BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT,
        )  # fmt: skip

    # Before anything that an earlier kernel may have written is read, and in every program: a grid that ended without
    # waiting would let its successors overtake its predecessors.
    if LAUNCH_OVERLAP:
        gdc_wait()
        gdc_launch_dependents()

    if STREAMED:
        tiles, up_to, each = stream_of_tiles(
            bounds_ptr, bounds_stride, batch, kv_len, q_len, num_splits, BLOCK_KV, BLOCK_BATCH, bounds_ptr is not None,
            CAUSAL, lengths_ptr, lengths_ptr is not None,
        )  # fmt: skip
        begin = split * each
        end = tl.minimum(begin + each, tl.sum(tiles, 0))
        first_sequence, last_sequence = stream_sequences(up_to, begin, end)
        for number in range(0, last_sequence - first_sequence + 1):
            sequence = first_sequence + number
            start, count, first_program, last_program = stream_place(tiles, up_to, each, sequence, BLOCK_BATCH)
            # Nothing is added, which the compiler cannot know: it would compute what depends on rows alone once, before
            # the loop, keep it throughout, and spill up to 736 bytes of a thread for it (Triton 3.6, 32 rows).
            row_tile += (count < 0).to(tl.int32)
            slot = stream_slot(kv_head, batch, num_splits, split, sequence)
            # Before the bounds are waited for: keys are asked for when queries are in shared memory.
            q = load_queries(
                q_ptr, sequence, kv_head, row_tile, q_len, q_batch_stride, q_head_stride, q_row_stride, GROUP, HEAD_DIM,
                BLOCK_M, BLOCK_D, Q_STRIDE_UNIT, CHAINS,
            )  # fmt: skip
            first_key, end_key, clean_first, clean_end = valid_keys(
                bounds_ptr, bounds_stride, sequence, kv_len, q_len, bounds_ptr is not None, CAUSAL, lengths_ptr,
                lengths_ptr is not None,
            )  # fmt: skip
            first = first_key + tl.maximum(begin - start, 0) * BLOCK_KV
            limit = tl.minimum(first_key + tl.minimum(end - start, count) * BLOCK_KV, end_key)
            maximum, total, accumulator = attend_share(
                q, k_ptr, v_ptr, k_descriptor, v_descriptor, mask_ptr, table_ptr, sink_ptr, score_scale, softcap,
                q_len, k_batch_stride, k_head_stride, k_row,
                v_batch_stride, v_head_stride, v_row, mask_batch_stride, mask_head_stride, mask_row_stride,
                mask_key_stride, table_stride, sequence, kv_head, row_tile, first, limit, BLOCK_KV, first_key, end_key,
                clean_first, clean_end, begin <= start, GROUP, HEAD_DIM, VALUE_DIM, BLOCK_M, BLOCK_KV, BLOCK_D,
                BLOCK_DV, KV_STRIDE_UNIT, MASK, MASK_PER_ROW, CLEAN_APART, CAUSAL, TMA, KEYS_FIRST,
                PREFETCH_DEPTH, PREFETCH_BULK, EVICTION, ROWS_ADJACENT, EXP2_SCALE, UPCAST, CHAINS, CAUSAL_TAIL, PAGED,
                PAGE_SIZE, TILES_IN_PAGES,
            )  # fmt: skip
            if PROLOGUE_PREFETCH and sequence < last_sequence:
                # While this result is written. Had it been asked for when this sequence began, what was read since
                # could have displaced it.
                next_key, next_end, _, _ = valid_keys(
                    bounds_ptr, bounds_stride, sequence + 1, kv_len, q_len, bounds_ptr is not None, CAUSAL, lengths_ptr,
                    lengths_ptr is not None,
                )  # fmt: skip
                k_next = head_start(k_ptr, sequence + 1, kv_head, k_batch_stride, k_head_stride, KV_STRIDE_UNIT, False)
                v_next = head_start(v_ptr, sequence + 1, kv_head, v_batch_stride, v_head_stride, KV_STRIDE_UNIT, False)
                prefetch_tile_l2(
                    k_next, next_key, next_end, k_row, HEAD_DIM, BLOCK_D, BLOCK_KV, PREFETCH_BULK, EVICTION,
                    ROWS_ADJACENT,
                )  # fmt: skip
                prefetch_tile_l2(
                    v_next, next_key, next_end, v_row, VALUE_DIM, BLOCK_DV, BLOCK_KV, PREFETCH_BULK, EVICTION,
                    ROWS_ADJACENT,
                )  # fmt: skip
            if first_program == last_program:
                write_output(
                    out_ptr, lse_ptr, maximum, total, accumulator, sequence, kv_head, KV_HEADS, row_tile, q_len,
                    out_batch, out_head, out_row, GROUP, VALUE_DIM, BLOCK_M, BLOCK_DV, KEYS_AXIS,
                    EXP2_SCALE, UPCAST,
                )  # fmt: skip
            else:
                write_partial(
                    partial_ptr, stats_ptr, arrivals_ptr, out_ptr, lse_ptr, maximum, total, accumulator, slot,
                    slot - split + first_program, last_program - first_program + 1, sequence, kv_head, KV_HEADS,
                    row_tile, row_tiles, q_len, out_batch, out_head, out_row, GROUP, VALUE_DIM,
                    BLOCK_M, BLOCK_DV, KEYS_AXIS, MERGE_IN_PLACE, ROWS_AT_ONCE, SPLITS_AT_ONCE, EXP2_SCALE, UPCAST,
                )  # fmt: skip
    else:
        if BALANCED:
            counts, up_to = balanced_counts(
                bounds_ptr, bounds_stride, batch, kv_len, q_len, num_splits, BLOCK_KV, BLOCK_BATCH, MOST_SPLITS,
                bounds_ptr is not None, CAUSAL, lengths_ptr, lengths_ptr is not None,
            )  # fmt: skip
            batch_split = (split * tl.num_programs(0) + flat) // (KV_HEADS * row_tiles)
            sequence, split, splits = balanced_split(counts, up_to, batch_split, BLOCK_BATCH)
            works = sequence < batch
            sequence = tl.minimum(sequence, batch - 1)
            slot = kv_head.to(tl.int64) * batch * num_splits + batch_split
        else:
            splits = num_splits
            slot = (sequence.to(tl.int64) * KV_HEADS + kv_head) * num_splits + split
        q = load_queries(
            q_ptr, sequence, kv_head, row_tile, q_len, q_batch_stride, q_head_stride, q_row_stride, GROUP, HEAD_DIM,
            BLOCK_M, BLOCK_D, Q_STRIDE_UNIT, CHAINS,
        )  # fmt: skip
        first_key, end_key, clean_first, clean_end = valid_keys(
            bounds_ptr, bounds_stride, sequence, kv_len, q_len, bounds_ptr is not None, CAUSAL, lengths_ptr,
            lengths_ptr is not None,
        )  # fmt: skip
        first, limit, step = split_range(first_key, end_key, kv_len, split, splits, BLOCK_KV, PARTITION)
        if not SPLIT:
            works = True
        elif not BALANCED:
            # Split 0 goes on even with no keys: it must write the zeros of rows that see nothing.
            splits = tl.maximum(active_splits(first_key, end_key, kv_len, num_splits, BLOCK_KV, PARTITION), 1)
            works = split < splits

        if works:
            maximum, total, accumulator = attend_share(
                q, k_ptr, v_ptr, k_descriptor, v_descriptor, mask_ptr, table_ptr, sink_ptr, score_scale, softcap,
                q_len, k_batch_stride, k_head_stride, k_row,
                v_batch_stride, v_head_stride, v_row, mask_batch_stride, mask_head_stride, mask_row_stride,
                mask_key_stride, table_stride, sequence, kv_head, row_tile, first, limit, step, first_key, end_key,
                clean_first, clean_end, split == 0, GROUP, HEAD_DIM, VALUE_DIM, BLOCK_M, BLOCK_KV, BLOCK_D, BLOCK_DV,
                KV_STRIDE_UNIT, MASK, MASK_PER_ROW, CLEAN_APART, CAUSAL, TMA, KEYS_FIRST, PREFETCH_DEPTH,
                PREFETCH_BULK, EVICTION, ROWS_ADJACENT, EXP2_SCALE, UPCAST, CHAINS, CAUSAL_TAIL, PAGED, PAGE_SIZE,
                TILES_IN_PAGES,
            )  # fmt: skip
            if SPLIT:
                write_partial(
                    partial_ptr, stats_ptr, arrivals_ptr, out_ptr, lse_ptr, maximum, total, accumulator, slot, slot -
                    split, splits, sequence, kv_head, KV_HEADS, row_tile, row_tiles, q_len, out_batch,
                    out_head, out_row, GROUP, VALUE_DIM, BLOCK_M, BLOCK_DV, KEYS_AXIS, MERGE_IN_PLACE,
                    ROWS_AT_ONCE, SPLITS_AT_ONCE, EXP2_SCALE, UPCAST,
                )  # fmt: skip
            else:
                write_output(
                    out_ptr, lse_ptr, maximum, total, accumulator, sequence, kv_head, KV_HEADS, row_tile, q_len,
                    out_batch, out_head, out_row, GROUP, VALUE_DIM, BLOCK_M, BLOCK_DV, KEYS_AXIS,
                    EXP2_SCALE, UPCAST,
                )  # fmt: skip
