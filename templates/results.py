"""Where a program's result goes: into the output, or beside those of other programs until all have arrived."""

import triton
import triton.language as tl

from .heads import rows_of_tile
from .rounding import round_to
from .softmax import along_keys, finite_maximum, store_lse


@triton.jit
def store_output(
    out_ptr, accumulator, total, row_offsets, row_valid, VALUE_DIM: tl.constexpr, BLOCK_DV: tl.constexpr,
    KEYS_AXIS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Normalise and write one tile of output rows. A row that saw no key is 0, as in SDPA's safe softmax."""
    columns = tl.arange(0, BLOCK_DV)
    denominator = along_keys(tl.where(total == 0.0, 1.0, total), KEYS_AXIS)
    pointers = out_ptr + along_keys(row_offsets, KEYS_AXIS) + tl.expand_dims(columns, 1 - KEYS_AXIS)
    inside = along_keys(row_valid, KEYS_AXIS) & tl.expand_dims(columns < VALUE_DIM, 1 - KEYS_AXIS)
    tl.store(pointers, round_to(accumulator / denominator, out_ptr.dtype.element_ty, UPCAST), mask=inside)


@triton.jit
def merge_in_place(
    partial_ptr, stats_ptr, out_ptr, first_slot, active, rows, first_row, kv_head, q_len, out_base, out_head_stride,
    out_row_stride, GROUP: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr,
    ROWS_AT_ONCE: tl.constexpr, SPLITS_AT_ONCE: tl.constexpr, EXP2_SCALE: tl.constexpr, UPCAST: tl.constexpr, lse_ptr,
):  # fmt: skip
    """Combine ``active`` partial results of one tile of rows, in split order, and write the output. Some rows and
    splits at a time: loads that are asked for together take one latency. ``lse_ptr`` is that of the KV head's rows."""
    columns = tl.arange(0, BLOCK_DV)
    for group_first in range(first_row, tl.minimum(first_row + BLOCK_M, rows), ROWS_AT_ONCE):
        row = group_first + tl.arange(0, ROWS_AT_ONCE)
        row_valid = row < rows
        maximum = tl.full([ROWS_AT_ONCE], float("-inf"), tl.float32)
        total = tl.zeros([ROWS_AT_ONCE], tl.float32)
        accumulator = tl.zeros([ROWS_AT_ONCE, BLOCK_DV], tl.float32)
        for chunk_first in range(0, active, SPLITS_AT_ONCE):
            split = chunk_first + tl.arange(0, SPLITS_AT_ONCE)
            slot = (first_slot + split)[:, None] * rows + row[None, :]
            inside = (split < active)[:, None] & row_valid[None, :]
            maxima = tl.load(stats_ptr + slot * 2, mask=inside, other=float("-inf"), cache_modifier=".cg")
            totals = tl.load(stats_ptr + slot * 2 + 1, mask=inside, other=0.0, cache_modifier=".cg")
            partials = tl.load(
                partial_ptr + (slot * VALUE_DIM)[:, :, None] + columns[None, None, :],
                mask=inside[:, :, None] & (columns < VALUE_DIM)[None, None, :], other=0.0, cache_modifier=".cg",
            )  # fmt: skip
            new_maximum = tl.maximum(maximum, tl.max(maxima, 0))
            reference = finite_maximum(new_maximum)
            shrink = tl.exp2((maximum - reference) * EXP2_SCALE)
            weight = tl.exp2((maxima - reference[None, :]) * EXP2_SCALE)
            accumulator = accumulator * shrink[:, None] + tl.sum(partials * weight[:, :, None], 0)
            total = total * shrink + tl.sum(totals * weight, 0)
            maximum = new_maximum
        head = kv_head * GROUP + row // q_len
        out_rows = out_base + head.to(tl.int64) * out_head_stride + (row % q_len) * out_row_stride
        store_output(out_ptr, accumulator, total, out_rows, row_valid, VALUE_DIM, BLOCK_DV, 1, UPCAST)
        if lse_ptr is not None:
            store_lse(lse_ptr, maximum, total, row, row_valid, EXP2_SCALE)


@triton.jit
def write_output(
    out_ptr, lse_ptr, maximum, total, accumulator, sequence, kv_head, kv_heads, row_tile, q_len, out_batch_stride,
    out_head_stride, out_row_stride, GROUP: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_DV: tl.constexpr, KEYS_AXIS: tl.constexpr, EXP2_SCALE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of rows that has seen all of its sequence's keys."""
    row, row_valid, row_head, row_query = rows_of_tile(row_tile, kv_head, q_len, GROUP, BLOCK_M)
    out_rows = (
        sequence.to(tl.int64) * out_batch_stride + row_head.to(tl.int64) * out_head_stride + row_query * out_row_stride
    )
    store_output(out_ptr, accumulator, total, out_rows, row_valid, VALUE_DIM, BLOCK_DV, KEYS_AXIS, UPCAST)
    if lse_ptr is not None:
        lse_head = lse_ptr + (sequence.to(tl.int64) * kv_heads + kv_head) * (GROUP * q_len)
        store_lse(lse_head, maximum, total, row, row_valid, EXP2_SCALE)


@triton.jit
def write_partial(
    partial_ptr, stats_ptr, arrivals_ptr, out_ptr, lse_ptr, maximum, total, accumulator, slot, first_slot, splits,
    sequence, kv_head, kv_heads, row_tile, row_tiles, q_len, out_batch_stride, out_head_stride, out_row_stride,
    GROUP: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr,
    KEYS_AXIS: tl.constexpr, MERGE_IN_PLACE: tl.constexpr, ROWS_AT_ONCE: tl.constexpr, SPLITS_AT_ONCE: tl.constexpr,
    EXP2_SCALE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of rows that has seen some of its sequence's keys: partial result ``slot`` of the ``splits`` from
    ``first_slot`` on. The last program to arrive merges them, if that is asked for."""
    rows = GROUP * q_len
    row, row_valid, _, _ = rows_of_tile(row_tile, kv_head, q_len, GROUP, BLOCK_M)
    value_columns = tl.arange(0, BLOCK_DV)
    partial_rows = slot * rows + row
    tl.store(stats_ptr + partial_rows * 2, maximum, mask=row_valid)
    tl.store(stats_ptr + partial_rows * 2 + 1, total, mask=row_valid)
    tl.store(
        partial_ptr + along_keys(partial_rows * VALUE_DIM, KEYS_AXIS) + tl.expand_dims(value_columns, 1 - KEYS_AXIS),
        accumulator,
        mask=along_keys(row_valid, KEYS_AXIS) & tl.expand_dims(value_columns < VALUE_DIM, 1 - KEYS_AXIS),
    )
    if MERGE_IN_PLACE:
        # Every thread's stores must be done before one of them announces the arrival.
        tl.debug_barrier()
        counter = arrivals_ptr + (sequence * kv_heads + kv_head) * row_tiles + row_tile
        arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        if arrived == splits - 1:
            lse_head = None
            if lse_ptr is not None:
                lse_head = lse_ptr + (sequence.to(tl.int64) * kv_heads + kv_head) * rows
            merge_in_place(
                partial_ptr, stats_ptr, out_ptr, first_slot, splits, rows, row_tile * BLOCK_M, kv_head, q_len,
                sequence.to(tl.int64) * out_batch_stride, out_head_stride, out_row_stride, GROUP, VALUE_DIM, BLOCK_M,
                BLOCK_DV, ROWS_AT_ONCE, SPLITS_AT_ONCE, EXP2_SCALE, UPCAST, lse_head,
            )  # fmt: skip
