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

from .heads import head_start
from .masking import apply_mask_by_row, key_bias
from .paging import page_rows, prefetch_paged_l2, tile_pages
from .prefetch import prefetch_tile_l2
from .products import multiply, sum_of_products
from .rounding import round_to
from .softmax import along_keys, finite_maximum, online_softmax, sink_statistics, soft_cap, store_lse
from .split_plan import active_splits, balanced_counts, balanced_split, guessed_begin, split_range, valid_keys


@triton.jit
def load_tile(
    head_ptr,
    descriptor,
    sequence,
    head,
    first,
    end,
    row_stride,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    TMA: tl.constexpr,
    WHOLE: tl.constexpr,
    pages,
    page_stride,
    PAGED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILES_IN_PAGES: tl.constexpr,
):
    """Rows [first, first + BLOCK_KV) of one head as (BLOCK_KV, BLOCK_DIM). Columns past DIM are 0, and so are rows past
    ``end`` unless the tile is WHOLE. TMA knows the cache's capacity, not ``end``: it also reads rows that nobody asked
    for, and their stale values may be NaN, so they are cleared (0 * NaN is NaN)."""
    keys = first + tl.arange(0, BLOCK_KV)
    columns = tl.arange(0, BLOCK_DIM)
    if TMA:
        if PAGED:
            tile = descriptor.load([pages, head, first % PAGE_SIZE, 0]).reshape([BLOCK_KV, BLOCK_DIM])
        else:
            tile = descriptor.load([sequence, head, first, 0]).reshape([BLOCK_KV, BLOCK_DIM])
        if not WHOLE:
            tile = tl.where((keys < end)[:, None], tile, 0.0)
    else:
        if PAGED:
            starts = page_rows(pages, first, page_stride, row_stride, BLOCK_KV, PAGE_SIZE, TILES_IN_PAGES)
            pointers = head_ptr + starts[:, None] + columns[None, :]
        else:
            rows = tl.arange(0, BLOCK_KV).to(tl.int64)
            pointers = head_ptr + tl.cast(first, tl.int64) * row_stride + rows[:, None] * row_stride + columns[None, :]
        if WHOLE and DIM == BLOCK_DIM:
            tile = tl.load(pointers)
        elif WHOLE:
            tile = tl.load(pointers, mask=(columns < DIM)[None, :], other=0.0)
        else:
            tile = tl.load(pointers, mask=(keys < end)[:, None] & (columns < DIM)[None, :], other=0.0)
    return tile


@triton.jit
def fold_tile(
    q,
    maximum,
    total,
    accumulator,
    k,
    v,
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
    CHAINS: tl.constexpr,
    EXP2_SCALE: tl.constexpr,
    WHOLE: tl.constexpr,
    row_last,
    CAUSAL_TAIL: tl.constexpr,
):
    """Fold a tile of K and V, keys [first, first + BLOCK_KV), into the running softmax. KEYS_FIRST keeps scores as
    (keys, rows) and the accumulator as (value columns, rows); otherwise both lead with rows. ``row_last`` is the last
    key that a row sees where there is a CAUSAL_TAIL."""
    KEYS_AXIS: tl.constexpr = 0 if KEYS_FIRST else 1
    keys = first + tl.arange(0, BLOCK_KV)
    if CHAINS > 1:
        scores = sum_of_products(k, q, CHAINS) if KEYS_FIRST else sum_of_products(q, k, CHAINS)
    elif KEYS_FIRST:
        scores = multiply(k, tl.trans(q), None, UPCAST)
    else:
        scores = multiply(q, tl.trans(k), None, UPCAST)
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
            # Most masks hide nothing inside their bounds (a prefix, left padding): then nothing is loaded. A vector,
            # added in the multiplication by the scale, so that it costs no instruction where it is 0.
            wanted = (first < clean_first) | (tl.minimum(first + BLOCK_KV, end) > clean_end)
            bias = key_bias(mask_ptr, mask_key_stride, keys, needed, wanted, MASK == "additive")
            scores = scores * score_scale + tl.expand_dims(bias, 1 - KEYS_AXIS)
    if not WHOLE:
        scores = tl.where(tl.expand_dims(valid, 1 - KEYS_AXIS), scores, float("-inf"))
    if CAUSAL:
        visible = tl.expand_dims(keys, 1 - KEYS_AXIS) <= along_keys(row_query, KEYS_AXIS)
        scores = tl.where(visible, scores, float("-inf"))
    if CAUSAL_TAIL:
        scores = tl.where(tl.expand_dims(keys, 1 - KEYS_AXIS) <= along_keys(row_last, KEYS_AXIS), scores, float("-inf"))
    probabilities, maximum, total, shrink = online_softmax(scores, maximum, total, EXP2_SCALE, KEYS_AXIS)
    accumulator *= along_keys(shrink, KEYS_AXIS)
    probabilities = round_to(probabilities, v.dtype, UPCAST)
    if KEYS_FIRST:
        accumulator = multiply(tl.trans(v), probabilities, accumulator, UPCAST)
    else:
        accumulator = multiply(probabilities, v, accumulator, UPCAST)
    return maximum, total, accumulator


@triton.jit
def attend_tile(
    q,
    maximum,
    total,
    accumulator,
    k_head_ptr,
    v_head_ptr,
    k_descriptor,
    v_descriptor,
    mask_ptr,
    mask_row_offsets,
    mask_key_stride,
    sequence,
    kv_head,
    first,
    end,
    clean_first,
    clean_end,
    row_query,
    score_scale,
    softcap,
    k_row_stride,
    v_row_stride,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    MASK: tl.constexpr,
    MASK_PER_ROW: tl.constexpr,
    CAUSAL: tl.constexpr,
    TMA: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
    UPCAST: tl.constexpr,
    CHAINS: tl.constexpr,
    EXP2_SCALE: tl.constexpr,
    WHOLE: tl.constexpr,
    row_last,
    pages,
    k_page_stride,
    v_page_stride,
    CAUSAL_TAIL: tl.constexpr,
    PAGED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILES_IN_PAGES: tl.constexpr,
):
    """Load keys [first, first + BLOCK_KV) and fold them into the running softmax. ``pages`` are those of a paged cache
    that they lie in."""
    # A partial tile by pointers reads only what is valid.
    BY_TMA: tl.constexpr = TMA and (WHOLE or KEYS_FIRST)
    if CHAINS > 1:
        k = ()
        for part in tl.static_range(CHAINS):
            k = k + (  # type: ignore[assignment]
                load_tile(
                    k_head_ptr + part * (BLOCK_D // CHAINS), k_descriptor, sequence, kv_head, first, end, k_row_stride,
                    HEAD_DIM - part * (BLOCK_D // CHAINS), BLOCK_D // CHAINS, BLOCK_KV, BY_TMA, WHOLE, pages,
                    k_page_stride, PAGED, PAGE_SIZE, TILES_IN_PAGES,
                ),
            )  # fmt: skip
    else:
        k = load_tile(
            k_head_ptr, k_descriptor, sequence, kv_head, first, end, k_row_stride,
            HEAD_DIM, BLOCK_D, BLOCK_KV, BY_TMA, WHOLE, pages, k_page_stride, PAGED, PAGE_SIZE, TILES_IN_PAGES,
        )  # fmt: skip
    # Asked for before it is needed, so that both loads are in flight where the loop is not pipelined.
    v = load_tile(
        v_head_ptr, v_descriptor, sequence, kv_head, first, end, v_row_stride,
        VALUE_DIM, BLOCK_DV, BLOCK_KV, BY_TMA, WHOLE, pages, v_page_stride, PAGED, PAGE_SIZE, TILES_IN_PAGES,
    )  # fmt: skip
    return fold_tile(
        q, maximum, total, accumulator, k, v, mask_ptr, mask_row_offsets, mask_key_stride, first, end,
        clean_first, clean_end, row_query, score_scale, softcap, BLOCK_KV, MASK, MASK_PER_ROW, CAUSAL, KEYS_FIRST,
        UPCAST, CHAINS, EXP2_SCALE, WHOLE, row_last, CAUSAL_TAIL,
    )  # fmt: skip


@triton.jit
def attend_range(
    q,
    maximum,
    total,
    accumulator,
    k_head_ptr,
    v_head_ptr,
    k_descriptor,
    v_descriptor,
    mask_ptr,
    mask_row_offsets,
    mask_key_stride,
    sequence,
    kv_head,
    first,
    limit,
    step,
    end,
    clean_first,
    clean_end,
    row_query,
    score_scale,
    softcap,
    k_row_stride,
    v_row_stride,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    MASK: tl.constexpr,
    MASK_PER_ROW: tl.constexpr,
    CAUSAL: tl.constexpr,
    TMA: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
    UPCAST: tl.constexpr,
    CHAINS: tl.constexpr,
    EXP2_SCALE: tl.constexpr,
    PREFETCH_DEPTH: tl.constexpr,
    PREFETCH_BULK: tl.constexpr,
    EVICTION: tl.constexpr,
    ROWS_ADJACENT: tl.constexpr,
    WHOLE: tl.constexpr,
    row_last,
    table_ptr,
    k_page_stride,
    v_page_stride,
    CAUSAL_TAIL: tl.constexpr,
    PAGED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILES_IN_PAGES: tl.constexpr,
):
    """Fold the tiles at ``first``, ``first + step``, ... below ``limit`` in a software-pipelined loop. WHOLE says that
    none is partial. ``table_ptr`` is the sequence's row of a paged cache's table."""
    pages = None
    if PAGED:
        pages = tile_pages(table_ptr, first, limit, BLOCK_KV, PAGE_SIZE, TILES_IN_PAGES)
    for ahead in tl.static_range(1, PREFETCH_DEPTH):
        target = first + ahead * step
        if PAGED:
            prefetch_paged_l2(
                k_head_ptr, v_head_ptr, table_ptr, target, limit, k_page_stride, v_page_stride, k_row_stride,
                v_row_stride, HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_DV, BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT,
                PAGE_SIZE, TILES_IN_PAGES,
            )  # fmt: skip
        else:
            prefetch_tile_l2(
                k_head_ptr,
                target,
                limit,
                k_row_stride,
                HEAD_DIM,
                BLOCK_D,
                BLOCK_KV,
                PREFETCH_BULK,
                EVICTION,
                ROWS_ADJACENT,
            )
            prefetch_tile_l2(
                v_head_ptr,
                target,
                limit,
                v_row_stride,
                VALUE_DIM,
                BLOCK_DV,
                BLOCK_KV,
                PREFETCH_BULK,
                EVICTION,
                ROWS_ADJACENT,
            )
    for tile_first in range(first, limit, step):
        next_pages = None
        if PAGED:
            next_pages = tile_pages(table_ptr, tile_first + step, limit, BLOCK_KV, PAGE_SIZE, TILES_IN_PAGES)
        if PREFETCH_DEPTH > 0:
            target = tile_first + PREFETCH_DEPTH * step
            if PAGED:
                prefetch_paged_l2(
                    k_head_ptr, v_head_ptr, table_ptr, target, limit, k_page_stride, v_page_stride, k_row_stride,
                    v_row_stride, HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_DV, BLOCK_KV, PREFETCH_BULK, EVICTION,
                    ROWS_ADJACENT,
                    PAGE_SIZE, TILES_IN_PAGES,
                )  # fmt: skip
            else:
                prefetch_tile_l2(
                    k_head_ptr,
                    target,
                    limit,
                    k_row_stride,
                    HEAD_DIM,
                    BLOCK_D,
                    BLOCK_KV,
                    PREFETCH_BULK,
                    EVICTION,
                    ROWS_ADJACENT,
                )
                prefetch_tile_l2(
                    v_head_ptr,
                    target,
                    limit,
                    v_row_stride,
                    VALUE_DIM,
                    BLOCK_DV,
                    BLOCK_KV,
                    PREFETCH_BULK,
                    EVICTION,
                    ROWS_ADJACENT,
                )
        maximum, total, accumulator = attend_tile(
            q, maximum, total, accumulator, k_head_ptr, v_head_ptr, k_descriptor, v_descriptor,
            mask_ptr, mask_row_offsets, mask_key_stride, sequence, kv_head, tile_first, end, clean_first, clean_end,
            row_query, score_scale, softcap, k_row_stride, v_row_stride, HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_DV,
            BLOCK_KV, MASK, MASK_PER_ROW, CAUSAL, TMA, KEYS_FIRST, UPCAST, CHAINS, EXP2_SCALE, WHOLE, row_last, pages,
            k_page_stride, v_page_stride, CAUSAL_TAIL, PAGED, PAGE_SIZE, TILES_IN_PAGES,
        )  # fmt: skip
        if PAGED:
            pages = next_pages
    return maximum, total, accumulator


@triton.jit
def divide_tiles(first, limit, step, end, clean_first, clean_end, BLOCK_KV: tl.constexpr):
    """Of the tiles at ``first``, ``first + step``, ... below ``limit``, how many stand before the clean ones, how many
    are clean (the mask hides none of their keys from any row), and how many stand behind those."""
    # The last tile may be partial: what lies beyond the last key is hidden by ``end``.
    clean_limit = tl.where(clean_end >= end, limit, tl.minimum(limit, clean_end - BLOCK_KV + 1))
    tiles = tl.maximum(limit - first + step - 1, 0) // step
    before = tl.minimum(tl.maximum(clean_first - first + step - 1, 0) // step, tiles)
    clean = tl.maximum(clean_limit - (first + before * step) + step - 1, 0) // step
    return before, clean, tiles - before - clean


@triton.jit
def attend_around(
    q,
    maximum,
    total,
    accumulator,
    k_head_ptr,
    v_head_ptr,
    k_descriptor,
    v_descriptor,
    mask_ptr,
    mask_row_offsets,
    mask_key_stride,
    sequence,
    kv_head,
    first,
    limit,
    step,
    before,
    clean,
    after,
    end,
    clean_first,
    clean_end,
    row_query,
    score_scale,
    softcap,
    k_row_stride,
    v_row_stride,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    TMA: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
    UPCAST: tl.constexpr,
    CHAINS: tl.constexpr,
    EXP2_SCALE: tl.constexpr,
    WHOLE: tl.constexpr,
    row_last,
    table_ptr,
    k_page_stride,
    v_page_stride,
    CAUSAL_TAIL: tl.constexpr,
    PAGED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILES_IN_PAGES: tl.constexpr,
):
    """Fold the tiles ``before`` and ``after`` the ``clean`` ones, with what a mask that differs by row hides there."""
    for number in range(0, before + after):
        tile_first = first + tl.where(number < before, number, number + clean) * step
        pages = None
        if PAGED:
            pages = tile_pages(table_ptr, tile_first, limit, BLOCK_KV, PAGE_SIZE, TILES_IN_PAGES)
        maximum, total, accumulator = attend_tile(
            q, maximum, total, accumulator, k_head_ptr, v_head_ptr, k_descriptor, v_descriptor,
            mask_ptr, mask_row_offsets, mask_key_stride, sequence, kv_head, tile_first, end, clean_first, clean_end,
            row_query, score_scale, softcap, k_row_stride, v_row_stride, HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_DV,
            BLOCK_KV, MASK, True, CAUSAL, TMA, KEYS_FIRST, UPCAST, CHAINS, EXP2_SCALE, WHOLE, row_last, pages,
            k_page_stride, v_page_stride, CAUSAL_TAIL, PAGED, PAGE_SIZE, TILES_IN_PAGES,
        )  # fmt: skip
    return maximum, total, accumulator


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


_RUNTIME_INTEGERS = [
    "q_len", "kv_len", "kv_heads", "row_tiles", "bounds_stride",
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
    q_len,
    kv_len,
    kv_heads,
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
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SPLIT: tl.constexpr,
    Q_STRIDE_UNIT: tl.constexpr,
    KV_STRIDE_UNIT: tl.constexpr,
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

    DOUBLE_SCALARS says that floats come as fp64, which is how AOTInductor passes them.

    PAGED caches are pools, k (pages, kv_heads, PAGE_SIZE, HEAD_DIM) and v likewise: their batch strides lead from page
    to page. ``table`` is int32 (batch, kv_len / PAGE_SIZE), its rows ``table_stride`` apart.
    """
    KEYS_AXIS: tl.constexpr = 0 if KEYS_FIRST else 1
    BALANCED: tl.constexpr = PARTITION == "balanced"
    if DOUBLE_SCALARS:
        score_scale = tl.cast(score_scale, tl.float32)
    flat = tl.program_id(0)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    batch = tl.num_programs(0) // (kv_heads * row_tiles)
    row_tile = flat % row_tiles
    kv_head = flat // row_tiles % kv_heads
    sequence = flat // (row_tiles * kv_heads)
    k_row = tl.cast(k_row_stride, tl.int64) * KV_STRIDE_UNIT
    v_row = tl.cast(v_row_stride, tl.int64) * KV_STRIDE_UNIT

    if PROLOGUE_PREFETCH:
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

    if BALANCED:
        counts, up_to = balanced_counts(
            bounds_ptr, bounds_stride, batch, kv_len, q_len, num_splits, BLOCK_KV, BLOCK_BATCH, MOST_SPLITS,
            bounds_ptr is not None, CAUSAL, lengths_ptr, lengths_ptr is not None,
        )  # fmt: skip
        batch_split = (split * tl.num_programs(0) + flat) // (kv_heads * row_tiles)
        sequence, split, splits = balanced_split(counts, up_to, batch_split, BLOCK_BATCH)
        works = sequence < batch
        sequence = tl.minimum(sequence, batch - 1)
        slot = kv_head.to(tl.int64) * batch * num_splits + batch_split
    else:
        splits = num_splits
        slot = (sequence.to(tl.int64) * kv_heads + kv_head) * num_splits + split
    first_key, end_key, clean_first, clean_end = valid_keys(
        bounds_ptr, bounds_stride, sequence, kv_len, q_len, bounds_ptr is not None, CAUSAL, lengths_ptr,
        lengths_ptr is not None,
    )  # fmt: skip
    first, limit, step = split_range(first_key, end_key, kv_len, split, splits, BLOCK_KV, PARTITION)
    if not BALANCED:
        # Split 0 goes on even with no keys: it must write the zeros of rows that see nothing.
        splits = tl.maximum(active_splits(first_key, end_key, kv_len, num_splits, BLOCK_KV, PARTITION), 1)
        works = split < splits

    if works:
        sequence_wide = sequence.to(tl.int64)
        k_head_ptr = head_start(k_ptr, sequence, kv_head, k_batch_stride, k_head_stride, KV_STRIDE_UNIT, PAGED)
        v_head_ptr = head_start(v_ptr, sequence, kv_head, v_batch_stride, v_head_stride, KV_STRIDE_UNIT, PAGED)
        table_row = None
        k_page = None
        v_page = None
        if PAGED:
            table_row = table_ptr + sequence_wide * table_stride
            k_page = tl.cast(k_batch_stride, tl.int64) * KV_STRIDE_UNIT
            v_page = tl.cast(v_batch_stride, tl.int64) * KV_STRIDE_UNIT
        rows = GROUP * q_len
        row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        row_valid = row < rows
        row_head = kv_head * GROUP + row // q_len
        row_query = row % q_len
        row_last = None
        if CAUSAL_TAIL:
            row_last = row_query + (end_key - q_len)

        columns = tl.arange(0, BLOCK_D)
        q_rows = (
            sequence_wide * q_batch_stride + row_head.to(tl.int64) * q_head_stride + row_query * q_row_stride
        ) * Q_STRIDE_UNIT
        if CHAINS > 1:
            q = ()
            for part in tl.static_range(CHAINS):
                columns = part * (BLOCK_D // CHAINS) + tl.arange(0, BLOCK_D // CHAINS)
                inside = row_valid[:, None] & (columns < HEAD_DIM)[None, :]
                q = q + (tl.load(q_ptr + q_rows[:, None] + columns[None, :], mask=inside, other=0.0),)  # type: ignore[assignment]
        else:
            q = tl.load(
                q_ptr + q_rows[:, None] + columns[None, :],
                mask=row_valid[:, None] & (columns < HEAD_DIM)[None, :],
                other=0.0,
            )
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
            accumulator = tl.zeros([BLOCK_DV, BLOCK_M], tl.float32)
        else:
            accumulator = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)

        # Pointer loads check every row at no cost; TMA loads cannot: the last, partial tile is taken out of the loop.
        # Not so with keys first: outside a pipelined loop Triton 3.6 gets that product wrong on sm_90 (admissible.py).
        PEEL: tl.constexpr = TMA and not KEYS_FIRST
        whole_end = first_key + tl.maximum(end_key - first_key, 0) // BLOCK_KV * BLOCK_KV
        loop_end = limit
        if PEEL:
            loop_end = tl.minimum(limit, whole_end)
        if MASK_PER_ROW and CLEAN_APART:
            before, clean, after = divide_tiles(first, loop_end, step, end_key, clean_first, clean_end, BLOCK_KV)
            clean_begin = first + before * step
            clean_limit = tl.minimum(clean_begin + clean * step, loop_end)
            maximum, total, accumulator = attend_range(
                q, maximum, total, accumulator, k_head_ptr, v_head_ptr, k_descriptor, v_descriptor,
                mask_base, mask_rows, mask_key_stride, sequence, kv_head, clean_begin, clean_limit, step, end_key,
                clean_first, clean_end, row_query, score_scale, softcap, k_row, v_row, HEAD_DIM, VALUE_DIM, BLOCK_D,
                BLOCK_DV, BLOCK_KV, "none", False, CAUSAL, TMA, KEYS_FIRST, UPCAST, CHAINS, EXP2_SCALE, PREFETCH_DEPTH,
                PREFETCH_BULK, EVICTION, ROWS_ADJACENT, PEEL, row_last, table_row, k_page, v_page, CAUSAL_TAIL, PAGED,
                PAGE_SIZE,
                TILES_IN_PAGES,
            )  # fmt: skip
            maximum, total, accumulator = attend_around(
                q, maximum, total, accumulator, k_head_ptr, v_head_ptr, k_descriptor, v_descriptor,
                mask_base, mask_rows, mask_key_stride, sequence, kv_head, first, loop_end, step, before, clean, after,
                end_key, clean_first, clean_end, row_query, score_scale, softcap, k_row, v_row, HEAD_DIM, VALUE_DIM,
                BLOCK_D, BLOCK_DV, BLOCK_KV, MASK, CAUSAL, TMA, KEYS_FIRST, UPCAST, CHAINS, EXP2_SCALE, PEEL,
                row_last, table_row, k_page, v_page, CAUSAL_TAIL, PAGED, PAGE_SIZE, TILES_IN_PAGES,
            )  # fmt: skip
        else:
            maximum, total, accumulator = attend_range(
                q, maximum, total, accumulator, k_head_ptr, v_head_ptr, k_descriptor, v_descriptor,
                mask_base, mask_rows, mask_key_stride, sequence, kv_head, first, loop_end, step, end_key, clean_first,
                clean_end, row_query, score_scale, softcap, k_row, v_row, HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_DV,
                BLOCK_KV, MASK, MASK_PER_ROW, CAUSAL, TMA, KEYS_FIRST, UPCAST, CHAINS, EXP2_SCALE, PREFETCH_DEPTH,
                PREFETCH_BULK, EVICTION, ROWS_ADJACENT, PEEL, row_last, table_row, k_page, v_page, CAUSAL_TAIL, PAGED,
                PAGE_SIZE,
                TILES_IN_PAGES,
            )  # fmt: skip

        if PEEL and (whole_end < limit) & (whole_end >= first) & ((whole_end - first) % step == 0):
            pages = None
            if PAGED:
                pages = tile_pages(table_row, whole_end, limit, BLOCK_KV, PAGE_SIZE, TILES_IN_PAGES)
            maximum, total, accumulator = attend_tile(
                q, maximum, total, accumulator, k_head_ptr, v_head_ptr, k_descriptor, v_descriptor,
                mask_base, mask_rows, mask_key_stride, sequence, kv_head, whole_end, end_key, clean_first, clean_end,
                row_query, score_scale, softcap, k_row, v_row, HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_DV, BLOCK_KV,
                MASK, MASK_PER_ROW, CAUSAL, TMA, KEYS_FIRST, UPCAST, CHAINS, EXP2_SCALE, False, row_last, pages, k_page,
                v_page, CAUSAL_TAIL, PAGED, PAGE_SIZE, TILES_IN_PAGES,
            )  # fmt: skip

        out_rows = (
            sequence_wide * out_batch_stride + row_head.to(tl.int64) * out_head_stride + row_query * out_row_stride
        )
        lse_head = None
        if lse_ptr is not None:
            lse_head = lse_ptr + (sequence_wide * kv_heads + kv_head) * rows
        if not SPLIT:
            store_output(out_ptr, accumulator, total, out_rows, row_valid, VALUE_DIM, BLOCK_DV, KEYS_AXIS, UPCAST)
            if lse_ptr is not None:
                store_lse(lse_head, maximum, total, row, row_valid, EXP2_SCALE)
        else:
            value_columns = tl.arange(0, BLOCK_DV)
            partial_rows = slot * rows + row
            tl.store(stats_ptr + partial_rows * 2, maximum, mask=row_valid)
            tl.store(stats_ptr + partial_rows * 2 + 1, total, mask=row_valid)
            tl.store(
                partial_ptr
                + along_keys(partial_rows * VALUE_DIM, KEYS_AXIS)
                + tl.expand_dims(value_columns, 1 - KEYS_AXIS),
                accumulator,
                mask=along_keys(row_valid, KEYS_AXIS) & tl.expand_dims(value_columns < VALUE_DIM, 1 - KEYS_AXIS),
            )
            if MERGE_IN_PLACE:
                # Every thread's stores must be done before one of them announces the arrival.
                tl.debug_barrier()
                counter = arrivals_ptr + (sequence * kv_heads + kv_head) * row_tiles + row_tile
                arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
                if arrived == splits - 1:
                    merge_in_place(
                        partial_ptr, stats_ptr, out_ptr, slot - split, splits, rows, row_tile * BLOCK_M, kv_head, q_len,
                        sequence_wide * out_batch_stride, out_head_stride, out_row_stride, GROUP, VALUE_DIM, BLOCK_M,
                        BLOCK_DV, ROWS_AT_ONCE, SPLITS_AT_ONCE, EXP2_SCALE, UPCAST, lse_head,
                    )  # fmt: skip
