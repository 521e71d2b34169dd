"""The separate merge: combine the partial results of one query row's splits and write the output row."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .results import merge_in_place
from .rounding import round_to
from .softmax import finite_maximum, store_lse
from .split_plan import (
    active_splits,
    balanced_counts,
    balanced_slots,
    stream_of_tiles,
    stream_place,
    stream_slot,
    valid_keys,
)

_RUNTIME_INTEGERS = [
    "q_len", "kv_len", "num_splits", "bounds_stride",
    "out_batch_stride", "out_head_stride", "out_row_stride",
]  # fmt: skip


@triton.jit
def load_chunk(
    partial_ptr, stats_ptr, slot, split, end, rows, row, columns, VALUE_DIM: tl.constexpr, WHOLE_TILE: tl.constexpr
):  # fmt: skip
    """Maxima, totals and partial rows of some splits of one query row; empty ones for splits from ``end`` on. In a
    WHOLE_TILE there are none of these, and all columns are of the row.

    Volatile loads stay in this order. In any other ptxas compares the maxima before it asks for the last partial rows:
    two memory latencies, one after the other.
    """
    first_row = slot * rows + row
    split_stats = stats_ptr + first_row * 2 + split * (rows * 2)
    split_partials = partial_ptr + first_row * VALUE_DIM + (split * (rows * VALUE_DIM))[:, None] + columns[None, :]
    if WHOLE_TILE:
        partials = tl.load(split_partials, volatile=True)
        maxima = tl.load(split_stats, volatile=True)
        totals = tl.load(split_stats + 1, volatile=True)
    else:
        inside = split < end
        inside_row = inside[:, None] & (columns < VALUE_DIM)[None, :]
        partials = tl.load(split_partials, mask=inside_row, other=0.0, volatile=True)
        maxima = tl.load(split_stats, mask=inside, other=float("-inf"), volatile=True)
        totals = tl.load(split_stats + 1, mask=inside, other=0.0, volatile=True)
    return maxima, totals, partials


@triton.jit
def merge_stream(
    partial_ptr, stats_ptr, bounds_ptr, out_ptr, lengths_ptr, lse_ptr, q_len, kv_len, kv_heads, num_splits,
    bounds_stride, out_batch_stride, out_head_stride, out_row_stride, GROUP: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr, BLOCK_KV: tl.constexpr, CHUNK: tl.constexpr, BLOCK_BATCH: tl.constexpr,
    STREAM_ROWS: tl.constexpr, CAUSAL: tl.constexpr, EXP2_SCALE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Some rows of one sequence and KV head: CHUNK parts at a time, since most sequences have a few."""
    rows = GROUP * q_len
    row_groups = (rows + STREAM_ROWS - 1) // STREAM_ROWS
    flat = tl.program_id(0)
    first_row = flat % row_groups * STREAM_ROWS
    head_slot = flat // row_groups
    kv_head = head_slot % kv_heads
    sequence = head_slot // kv_heads
    batch = tl.num_programs(0) // (kv_heads * row_groups)
    tiles, up_to, each = stream_of_tiles(
        bounds_ptr, bounds_stride, batch, kv_len, q_len, num_splits, BLOCK_KV, BLOCK_BATCH, bounds_ptr is not None,
        CAUSAL, lengths_ptr, lengths_ptr is not None,
    )  # fmt: skip
    _, _, first_program, last_program = stream_place(tiles, up_to, each, sequence, BLOCK_BATCH)
    # A program that was alone has written the output.
    if first_program < last_program:
        lse_head = None
        if lse_ptr is not None:
            lse_head = lse_ptr + (sequence.to(tl.int64) * kv_heads + kv_head) * rows
        merge_in_place(
            partial_ptr, stats_ptr, out_ptr, stream_slot(kv_head, batch, num_splits, first_program, sequence),
            last_program - first_program + 1, rows, first_row, kv_head, q_len,
            sequence.to(tl.int64) * out_batch_stride, out_head_stride, out_row_stride, GROUP, VALUE_DIM, STREAM_ROWS,
            BLOCK_DV, STREAM_ROWS, CHUNK, EXP2_SCALE, UPCAST, lse_head,
        )  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME_INTEGERS)
def merge_splits(
    partial_ptr,
    stats_ptr,
    bounds_ptr,
    out_ptr,
    lengths_ptr,
    lse_ptr,
    q_len,
    kv_len,
    num_splits,
    bounds_stride,
    out_batch_stride,
    out_head_stride,
    out_row_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ONE_QUERY: tl.constexpr,
    OUT_STRIDE_UNIT: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    WHOLE_TILE: tl.constexpr,
    PARTITION: tl.constexpr,
    STREAMED: tl.constexpr,
    STREAM_ROWS: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    CAUSAL: tl.constexpr,
    LAUNCH_OVERLAP: tl.constexpr,
    EXP2_SCALE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid (batch * kv_heads * group * q_len, BLOCK_DV / COLUMNS): a program has COLUMNS of a row. Where STREAMED, one
    has all columns of STREAM_ROWS of the rows of a KV head.

    Only splits that had keys count, in order, CHUNK at a time, so the result does not depend on which program finished
    first. Layouts as in ``split_kv_decode``."""
    if LAUNCH_OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    if ONE_QUERY:
        q_len = 1
    out_batch = tl.cast(out_batch_stride, tl.int64) * OUT_STRIDE_UNIT
    out_head = tl.cast(out_head_stride, tl.int64) * OUT_STRIDE_UNIT
    out_row = tl.cast(out_row_stride, tl.int64) * OUT_STRIDE_UNIT
    if STREAMED:
        merge_stream(
            partial_ptr, stats_ptr, bounds_ptr, out_ptr, lengths_ptr, lse_ptr, q_len, kv_len, KV_HEADS, num_splits,
            bounds_stride, out_batch, out_head, out_row, GROUP, VALUE_DIM, BLOCK_DV, BLOCK_KV,
            CHUNK, BLOCK_BATCH, STREAM_ROWS, CAUSAL, EXP2_SCALE, UPCAST,
        )  # fmt: skip
    else:
        rows = GROUP * q_len
        flat = tl.program_id(0)
        row = flat % rows
        head_slot = flat // rows
        kv_head = head_slot % KV_HEADS
        sequence = head_slot // KV_HEADS

        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        splits = tl.arange(0, BLOCK_SPLITS)
        ALL_AT_ONCE: tl.constexpr = CHUNK == BLOCK_SPLITS
        if PARTITION == "balanced":
            batch = tl.num_programs(0) // (KV_HEADS * rows)
            counts, up_to = balanced_counts(
                bounds_ptr, bounds_stride, batch, kv_len, q_len, num_splits, BLOCK_KV, BLOCK_BATCH, MOST_SPLITS,
                bounds_ptr is not None, CAUSAL, lengths_ptr, lengths_ptr is not None,
            )  # fmt: skip
            batch_slot, active = balanced_slots(counts, up_to, sequence, BLOCK_BATCH)
            slot = kv_head.to(tl.int64) * batch * num_splits + batch_slot
            if ALL_AT_ONCE:
                maxima, totals, partials = load_chunk(
                    partial_ptr, stats_ptr, slot, splits, active, rows, row, columns, VALUE_DIM, False
                )
        else:
            slot = head_slot.to(tl.int64) * num_splits
            if ALL_AT_ONCE:
                # Before the bounds, and not after them: one memory latency instead of two. What splits without keys
                # hold is left over from other launches, and dropped below.
                maxima, totals, partials = load_chunk(
                    partial_ptr, stats_ptr, slot, splits, num_splits, rows, row, columns, VALUE_DIM, WHOLE_TILE
                )
            first_key, end_key, _, _ = valid_keys(
                bounds_ptr, bounds_stride, sequence, kv_len, q_len, bounds_ptr is not None, CAUSAL, lengths_ptr,
                lengths_ptr is not None, ALL_AT_ONCE,
            )  # fmt: skip
            active = active_splits(first_key, end_key, kv_len, num_splits, BLOCK_KV, PARTITION)
            if lse_ptr is not None:
                # Split 0 of a sequence without keys has its sinks, which the output does without.
                active = tl.maximum(active, 1)

        if ALL_AT_ONCE:
            if active < BLOCK_SPLITS:
                maxima = tl.where(splits < active, maxima, float("-inf"))
                totals = tl.where(splits < active, totals, 0.0)
                partials = tl.where((splits < active)[:, None], partials, 0.0)
            reference = finite_maximum(tl.max(maxima, 0))
            weight = tl.exp2((maxima - reference) * EXP2_SCALE)
            total = tl.sum(totals * weight, 0)
            accumulator = tl.sum(partials * weight[:, None], 0)
        else:
            all_maxima = tl.load(
                stats_ptr + ((slot + splits) * rows + row) * 2, mask=splits < active, other=float("-inf")
            )
            reference = finite_maximum(tl.max(all_maxima, 0))
            accumulator = tl.zeros([COLUMNS], tl.float32)
            total = tl.sum(tl.zeros([CHUNK], tl.float32), 0)
            for chunk_first in range(0, active, CHUNK):
                split = chunk_first + tl.arange(0, CHUNK)
                maxima, totals, partials = load_chunk(
                    partial_ptr, stats_ptr, slot, split, active, rows, row, columns, VALUE_DIM, False
                )
                weight = tl.exp2((maxima - reference) * EXP2_SCALE)
                total += tl.sum(totals * weight, 0)
                accumulator += tl.sum(partials * weight[:, None], 0)

        head = kv_head * GROUP + row // q_len
        out_base = sequence.to(tl.int64) * out_batch + head.to(tl.int64) * out_head + (row % q_len) * out_row
        denominator = tl.where(total == 0.0, 1.0, total)
        result = round_to(accumulator / denominator, out_ptr.dtype.element_ty, UPCAST)
        tl.store(out_ptr + out_base + columns, result, mask=columns < VALUE_DIM)
        if lse_ptr is not None:
            store_lse(lse_ptr, reference, total, flat, tl.program_id(1) == 0, EXP2_SCALE)
