"""Split-KV flash decoding over a latent cache (multi-head latent attention in its absorbed form, arXiv 2405.04434).

All query heads read one row for each key: a latent, and a rotary key beside it. A score is the product of a query's
latent columns with the latent, plus that of its rotary columns with the rotary key; the values are the latents again.
So a tile of latents is loaded once and serves both products. What takes queries to latents and results back from them
is the caller's: two small products by head.

The queries of all heads and positions are packed in tiles of BLOCK_M rows (row r is head r // q_len, query r % q_len).
Programs, splits, masks, bounds, lengths and partial results are those of ``split_kv_decode`` with one KV head.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .heads import head_start
from .masking import apply_mask_by_row, key_bias
from .prefetch import prefetch_tile_l2
from .products import multiply
from .results import store_output
from .rounding import round_to
from .softmax import along_keys, online_softmax, sink_statistics, soft_cap
from .split_plan import active_splits, balanced_counts, balanced_split, split_range, valid_keys


@triton.jit
def load_rows(
    own_ptr, descriptor, sequence, first, end, row_stride,
    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_KV: tl.constexpr, TMA: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Keys [first, first + BLOCK_KV) of one sequence as (BLOCK_KV, BLOCK_DIM). Columns past DIM are 0, and so are rows
    past ``end`` unless the tile is WHOLE. TMA knows the capacity, not ``end``: what it reads there may be NaN."""
    keys = first + tl.arange(0, BLOCK_KV)
    if TMA:
        tile = descriptor.load([sequence, 0, first, 0]).reshape([BLOCK_KV, BLOCK_DIM])
        if not WHOLE:
            tile = tl.where((keys < end)[:, None], tile, 0.0)
    else:
        columns = tl.arange(0, BLOCK_DIM)
        rows = tl.arange(0, BLOCK_KV).to(tl.int64)
        pointers = own_ptr + tl.cast(first, tl.int64) * row_stride + rows[:, None] * row_stride + columns[None, :]
        if WHOLE and DIM == BLOCK_DIM:
            tile = tl.load(pointers)
        elif WHOLE:
            tile = tl.load(pointers, mask=(columns < DIM)[None, :], other=0.0)
        else:
            tile = tl.load(pointers, mask=(keys < end)[:, None] & (columns < DIM)[None, :], other=0.0)
    return tile


@triton.jit
def fold_latent_tile(
    q_latent,
    q_rope,
    maximum,
    total,
    accumulator,
    latent,
    rope,
    mask_ptr,
    mask_row_offsets,
    mask_key_stride,
    first,
    end,
    clean_first,
    clean_end,
    row_query,
    score_scale,
    softcap,
    BLOCK_KV: tl.constexpr,
    MASK: tl.constexpr,
    MASK_PER_ROW: tl.constexpr,
    CAUSAL: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
    UPCAST: tl.constexpr,
    EXP2_SCALE: tl.constexpr,
    WHOLE: tl.constexpr,
    row_last,
    CAUSAL_TAIL: tl.constexpr,
):
    """Fold keys [first, first + BLOCK_KV) into the running softmax. KEYS_FIRST keeps scores as (keys, rows) and the
    accumulator as (latent columns, rows); otherwise both lead with rows. ``row_last`` is the last key that a row sees
    where there is a CAUSAL_TAIL."""
    KEYS_AXIS: tl.constexpr = 0 if KEYS_FIRST else 1
    keys = first + tl.arange(0, BLOCK_KV)
    if KEYS_FIRST:
        scores = multiply(latent, tl.trans(q_latent), None, UPCAST)
        scores = multiply(rope, tl.trans(q_rope), scores, UPCAST)
    else:
        scores = multiply(q_latent, tl.trans(latent), None, UPCAST)
        scores = multiply(q_rope, tl.trans(rope), scores, UPCAST)
    valid = keys < end
    if softcap is not None:
        scores = soft_cap(scores * score_scale, softcap)
        score_scale = 1.0
    if MASK == "none":
        scores *= score_scale
    else:
        needed = ((keys < clean_first) | (keys >= clean_end)) & valid
        if MASK_PER_ROW:
            scores *= score_scale
            scores = apply_mask_by_row(
                scores, mask_ptr, mask_row_offsets, mask_key_stride, keys, needed, MASK == "additive", KEYS_AXIS
            )  # fmt: skip
        else:
            wanted = (first < clean_first) | (tl.minimum(first + BLOCK_KV, end) > clean_end)
            bias = key_bias(mask_ptr, mask_key_stride, keys, needed, wanted, MASK == "additive")
            scores = scores * score_scale + tl.expand_dims(bias, 1 - KEYS_AXIS)
    if not WHOLE:
        scores = tl.where(tl.expand_dims(valid, 1 - KEYS_AXIS), scores, float("-inf"))
    if CAUSAL:
        scores = tl.where(
            tl.expand_dims(keys, 1 - KEYS_AXIS) <= along_keys(row_query, KEYS_AXIS), scores, float("-inf")
        )
    if CAUSAL_TAIL:
        scores = tl.where(tl.expand_dims(keys, 1 - KEYS_AXIS) <= along_keys(row_last, KEYS_AXIS), scores, float("-inf"))
    probabilities, maximum, total, shrink = online_softmax(scores, maximum, total, EXP2_SCALE, KEYS_AXIS)
    accumulator *= along_keys(shrink, KEYS_AXIS)
    probabilities = round_to(probabilities, latent.dtype, UPCAST)
    if KEYS_FIRST:
        accumulator = multiply(tl.trans(latent), probabilities, accumulator, UPCAST)
    else:
        accumulator = multiply(probabilities, latent, accumulator, UPCAST)
    return maximum, total, accumulator


@triton.jit
def attend_latent_tile(
    q_latent,
    q_rope,
    maximum,
    total,
    accumulator,
    latent_ptr,
    rope_ptr,
    latent_descriptor,
    rope_descriptor,
    mask_ptr,
    mask_row_offsets,
    mask_key_stride,
    sequence,
    first,
    end,
    clean_first,
    clean_end,
    row_query,
    score_scale,
    softcap,
    latent_row_stride,
    rope_row_stride,
    LATENT_DIM: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    MASK: tl.constexpr,
    MASK_PER_ROW: tl.constexpr,
    CAUSAL: tl.constexpr,
    TMA: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
    UPCAST: tl.constexpr,
    EXP2_SCALE: tl.constexpr,
    WHOLE: tl.constexpr,
    row_last,
    CAUSAL_TAIL: tl.constexpr,
):
    """Load keys [first, first + BLOCK_KV) and fold them into the running softmax. The pointers are the sequence's."""
    # A partial tile by pointers reads only what is valid.
    BY_TMA: tl.constexpr = TMA and (WHOLE or KEYS_FIRST)
    latent = load_rows(
        latent_ptr, latent_descriptor, sequence, first, end, latent_row_stride, LATENT_DIM, BLOCK_L, BLOCK_KV, BY_TMA,
        WHOLE,
    )  # fmt: skip
    rope = load_rows(
        rope_ptr, rope_descriptor, sequence, first, end, rope_row_stride, ROPE_DIM, ROPE_DIM, BLOCK_KV, BY_TMA, WHOLE
    )
    return fold_latent_tile(
        q_latent, q_rope, maximum, total, accumulator, latent, rope, mask_ptr, mask_row_offsets, mask_key_stride, first,
        end, clean_first, clean_end, row_query, score_scale, softcap, BLOCK_KV, MASK, MASK_PER_ROW, CAUSAL, KEYS_FIRST,
        UPCAST, EXP2_SCALE, WHOLE, row_last, CAUSAL_TAIL,
    )  # fmt: skip


_RUNTIME_INTEGERS = [
    "q_len", "kv_len", "row_tiles", "bounds_stride",
    "q_batch_stride", "q_head_stride", "q_row_stride",
    "latent_batch_stride", "latent_row_stride", "rope_batch_stride", "rope_row_stride",
    "mask_batch_stride", "mask_head_stride", "mask_row_stride", "mask_key_stride",
    "out_batch_stride", "out_head_stride", "out_row_stride",
]  # fmt: skip


# Integers are not specialised: a cache that grows by one key a step must not compile a kernel a step.
@triton.jit(do_not_specialize=_RUNTIME_INTEGERS)
def latent_decode(
    q_ptr,
    latent_ptr,
    rope_ptr,
    latent_descriptor,
    rope_descriptor,
    mask_ptr,
    bounds_ptr,
    out_ptr,
    partial_ptr,
    stats_ptr,
    lengths_ptr,
    sink_ptr,
    score_scale,
    softcap,
    q_len,
    kv_len,
    row_tiles,
    bounds_stride,
    q_batch_stride,
    q_head_stride,
    q_row_stride,
    latent_batch_stride,
    latent_row_stride,
    rope_batch_stride,
    rope_row_stride,
    mask_batch_stride,
    mask_head_stride,
    mask_row_stride,
    mask_key_stride,
    out_batch_stride,
    out_head_stride,
    out_row_stride,
    HEADS: tl.constexpr,
    ONE_QUERY: tl.constexpr,
    LATENT_DIM: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_L: tl.constexpr,
    SPLIT: tl.constexpr,
    Q_STRIDE_UNIT: tl.constexpr,
    KV_STRIDE_UNIT: tl.constexpr,
    OUT_STRIDE_UNIT: tl.constexpr,
    MASK: tl.constexpr,
    MASK_PER_ROW: tl.constexpr,
    CAUSAL: tl.constexpr,
    TMA: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
    PREFETCH_DEPTH: tl.constexpr,
    PREFETCH_BULK: tl.constexpr,
    EVICTION: tl.constexpr,
    ROWS_ADJACENT: tl.constexpr,
    PARTITION: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    LAUNCH_OVERLAP: tl.constexpr,
    EXP2_SCALE: tl.constexpr,
    UPCAST: tl.constexpr,
    CAUSAL_TAIL: tl.constexpr,
):
    """Grid (batch * row_tiles, num_splits); SPLIT says whether num_splits is more than 1.

    q is (batch, HEADS, q_len, LATENT_DIM + ROPE_DIM), latent (batch, kv_len, LATENT_DIM), rope (batch, kv_len,
    ROPE_DIM), out (batch, HEADS, q_len, LATENT_DIM). Everything else is as in ``split_kv_decode``.
    """
    KEYS_AXIS: tl.constexpr = 0 if KEYS_FIRST else 1
    BALANCED: tl.constexpr = PARTITION == "balanced"
    # As in split_kv_decode.
    if ONE_QUERY:
        q_len = 1
        if HEADS <= BLOCK_M:
            row_tiles = 1
    flat = tl.program_id(0)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    batch = tl.num_programs(0) // row_tiles
    row_tile = flat % row_tiles
    sequence = flat // row_tiles
    latent_row = tl.cast(latent_row_stride, tl.int64) * KV_STRIDE_UNIT
    rope_row = tl.cast(rope_row_stride, tl.int64) * KV_STRIDE_UNIT

    # Before anything that an earlier kernel may have written is read, and in every program: a grid that ended without
    # waiting would let its successors overtake its predecessors.
    if LAUNCH_OVERLAP:
        gdc_wait()
        gdc_launch_dependents()

    if BALANCED:
        counts, up_to = balanced_counts(
            bounds_ptr, bounds_stride, batch, kv_len, q_len, num_splits, BLOCK_KV, BLOCK_BATCH, MOST_SPLITS,
            bounds_ptr is not None, CAUSAL, lengths_ptr, lengths_ptr is not None,
        )  # fmt: skip
        batch_split = (split * tl.num_programs(0) + flat) // row_tiles
        sequence, split, splits = balanced_split(counts, up_to, batch_split, BLOCK_BATCH)
        works = sequence < batch
        sequence = tl.minimum(sequence, batch - 1)
        slot = batch_split.to(tl.int64)
    else:
        splits = num_splits
        slot = sequence.to(tl.int64) * num_splits + split
    # Queries before bounds, as in split_kv_decode.
    sequence_wide = sequence.to(tl.int64)
    rows = HEADS * q_len
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_valid = row < rows
    row_head = row // q_len
    row_query = row % q_len
    latent_columns = tl.arange(0, BLOCK_L)
    rope_columns = LATENT_DIM + tl.arange(0, ROPE_DIM)
    q_rows = (
        sequence_wide * q_batch_stride + row_head.to(tl.int64) * q_head_stride + row_query * q_row_stride
    ) * Q_STRIDE_UNIT
    q_latent = tl.load(
        q_ptr + q_rows[:, None] + latent_columns[None, :],
        mask=row_valid[:, None] & (latent_columns < LATENT_DIM)[None, :],
        other=0.0,
    )
    q_rope = tl.load(q_ptr + q_rows[:, None] + rope_columns[None, :], mask=row_valid[:, None], other=0.0)
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
        own_latent_ptr = head_start(latent_ptr, sequence, split * 0, latent_batch_stride, 0, KV_STRIDE_UNIT, False)
        own_rope_ptr = head_start(rope_ptr, sequence, split * 0, rope_batch_stride, 0, KV_STRIDE_UNIT, False)
        row_last = None
        if CAUSAL_TAIL:
            row_last = row_query + (end_key - q_len)
        mask_rows = (
            sequence_wide * mask_batch_stride + row_head.to(tl.int64) * mask_head_stride + row_query * mask_row_stride
        )
        if MASK_PER_ROW:
            mask_rows = tl.where(row_valid, mask_rows, -1)
        mask_base = mask_ptr
        if MASK != "none" and not MASK_PER_ROW:
            mask_base = mask_ptr + sequence_wide * mask_batch_stride

        maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        if sink_ptr is not None:
            maximum, total = sink_statistics(sink_ptr, row_head, row < tl.where(split == 0, rows, 0), EXP2_SCALE)
        if KEYS_FIRST:
            accumulator = tl.zeros([BLOCK_L, BLOCK_M], tl.float32)
        else:
            accumulator = tl.zeros([BLOCK_M, BLOCK_L], tl.float32)

        # As in ``split_kv_decode``: TMA cannot leave out rows, so that the last, partial tile is taken out of the loop.
        PEEL: tl.constexpr = TMA and not KEYS_FIRST
        whole_end = first_key + tl.maximum(end_key - first_key, 0) // BLOCK_KV * BLOCK_KV
        loop_end = limit
        if PEEL:
            loop_end = tl.minimum(limit, whole_end)
        for ahead in tl.static_range(1, PREFETCH_DEPTH):
            prefetch_tile_l2(
                own_latent_ptr, first + ahead * step, loop_end, latent_row, LATENT_DIM, BLOCK_L, BLOCK_KV,
                PREFETCH_BULK, EVICTION, ROWS_ADJACENT,
            )  # fmt: skip
            prefetch_tile_l2(
                own_rope_ptr, first + ahead * step, loop_end, rope_row, ROPE_DIM, ROPE_DIM, BLOCK_KV, PREFETCH_BULK,
                EVICTION,
                ROWS_ADJACENT,
            )  # fmt: skip
        for tile_first in range(first, loop_end, step):
            if PREFETCH_DEPTH > 0:
                target = tile_first + PREFETCH_DEPTH * step
                prefetch_tile_l2(
                    own_latent_ptr, target, loop_end, latent_row, LATENT_DIM, BLOCK_L, BLOCK_KV, PREFETCH_BULK,
                    EVICTION,
                    ROWS_ADJACENT,
                )  # fmt: skip
                prefetch_tile_l2(
                    own_rope_ptr, target, loop_end, rope_row, ROPE_DIM, ROPE_DIM, BLOCK_KV, PREFETCH_BULK, EVICTION,
                    ROWS_ADJACENT,
                )  # fmt: skip
            maximum, total, accumulator = attend_latent_tile(
                q_latent, q_rope, maximum, total, accumulator, own_latent_ptr, own_rope_ptr, latent_descriptor,
                rope_descriptor, mask_base, mask_rows, mask_key_stride, sequence, tile_first, end_key, clean_first,
                clean_end, row_query, score_scale, softcap, latent_row, rope_row, LATENT_DIM, ROPE_DIM, BLOCK_L,
                BLOCK_KV, MASK, MASK_PER_ROW, CAUSAL, TMA, KEYS_FIRST, UPCAST, EXP2_SCALE, PEEL, row_last, CAUSAL_TAIL,
            )  # fmt: skip
        if PEEL and (whole_end < limit) & (whole_end >= first) & ((whole_end - first) % step == 0):
            maximum, total, accumulator = attend_latent_tile(
                q_latent, q_rope, maximum, total, accumulator, own_latent_ptr, own_rope_ptr, latent_descriptor,
                rope_descriptor, mask_base, mask_rows, mask_key_stride, sequence, whole_end, end_key, clean_first,
                clean_end, row_query, score_scale, softcap, latent_row, rope_row, LATENT_DIM, ROPE_DIM, BLOCK_L,
                BLOCK_KV, MASK, MASK_PER_ROW, CAUSAL, TMA, KEYS_FIRST, UPCAST, EXP2_SCALE, False, row_last, CAUSAL_TAIL,
            )  # fmt: skip

        out_rows = (
            sequence_wide * out_batch_stride + row_head.to(tl.int64) * out_head_stride + row_query * out_row_stride
        ) * OUT_STRIDE_UNIT
        if not SPLIT:
            store_output(out_ptr, accumulator, total, out_rows, row_valid, LATENT_DIM, BLOCK_L, KEYS_AXIS, UPCAST)
        else:
            partial_rows = slot * rows + row
            tl.store(stats_ptr + partial_rows * 2, maximum, mask=row_valid)
            tl.store(stats_ptr + partial_rows * 2 + 1, total, mask=row_valid)
            tl.store(
                partial_ptr
                + along_keys(partial_rows * LATENT_DIM, KEYS_AXIS)
                + tl.expand_dims(latent_columns, 1 - KEYS_AXIS),
                accumulator,
                mask=along_keys(row_valid, KEYS_AXIS) & tl.expand_dims(latent_columns < LATENT_DIM, 1 - KEYS_AXIS),
            )
