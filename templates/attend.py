"""What a program does with its share of one KV head's keys: load them in tiles, fold them into a running softmax."""

import triton
import triton.language as tl

from .heads import head_start, rows_of_tile
from .masking import apply_mask_by_row, key_bias
from .paging import page_rows, prefetch_paged_l2, tile_pages
from .prefetch import prefetch_tile_l2
from .products import multiply, sum_of_products
from .rounding import round_to
from .softmax import along_keys, online_softmax, sink_statistics, soft_cap


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
def load_queries(
    q_ptr, sequence, kv_head, row_tile, q_len, q_batch_stride, q_head_stride, q_row_stride, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, Q_STRIDE_UNIT: tl.constexpr,
    CHAINS: tl.constexpr,
):  # fmt: skip
    """One tile of query rows, [BLOCK_M, BLOCK_D]; as a tuple of CHAINS equal parts of its columns where there are
    several."""
    _, row_valid, row_head, row_query = rows_of_tile(row_tile, kv_head, q_len, GROUP, BLOCK_M)
    rows = (
        sequence.to(tl.int64) * q_batch_stride + row_head.to(tl.int64) * q_head_stride + row_query * q_row_stride
    ) * Q_STRIDE_UNIT
    if CHAINS > 1:
        q = ()
        for part in tl.static_range(CHAINS):
            columns = part * (BLOCK_D // CHAINS) + tl.arange(0, BLOCK_D // CHAINS)
            inside = row_valid[:, None] & (columns < HEAD_DIM)[None, :]
            q = q + (tl.load(q_ptr + rows[:, None] + columns[None, :], mask=inside, other=0.0),)  # type: ignore[assignment]
    else:
        columns = tl.arange(0, BLOCK_D)
        q = tl.load(
            q_ptr + rows[:, None] + columns[None, :],
            mask=row_valid[:, None] & (columns < HEAD_DIM)[None, :],
            other=0.0,
        )
    return q


@triton.jit
def attend_share(
    q,
    k_ptr,
    v_ptr,
    k_descriptor,
    v_descriptor,
    mask_ptr,
    table_ptr,
    sink_ptr,
    score_scale,
    softcap,
    q_len,
    k_batch_stride,
    k_head_stride,
    k_row,
    v_batch_stride,
    v_head_stride,
    v_row,
    mask_batch_stride,
    mask_head_stride,
    mask_row_stride,
    mask_key_stride,
    table_stride,
    sequence,
    kv_head,
    row_tile,
    first,
    limit,
    step,
    first_key,
    end_key,
    clean_first,
    clean_end,
    has_sink,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
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
    EXP2_SCALE: tl.constexpr,
    UPCAST: tl.constexpr,
    CHAINS: tl.constexpr,
    CAUSAL_TAIL: tl.constexpr,
    PAGED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILES_IN_PAGES: tl.constexpr,
):
    """Attend one tile of query rows to the tiles at ``first``, ``first + step``, ... below ``limit`` of ``sequence``,
    whose valid keys are [first_key, end_key): their maximum, total and accumulator, not yet divided by the total. One
    share of a sequence ``has_sink``."""
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
    row, row_valid, row_head, row_query = rows_of_tile(row_tile, kv_head, q_len, GROUP, BLOCK_M)
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
        maximum, total = sink_statistics(sink_ptr, row_head, row < tl.where(has_sink, GROUP * q_len, 0), EXP2_SCALE)
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
    return maximum, total, accumulator
