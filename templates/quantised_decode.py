"""Split-KV flash decoding over a quantised cache (e4m3, e5m2, 8-bit or 4-bit integers) with scales and zero points.

What makes it cheap: a row of the cache is read as 16-bit units of two neighbouring columns, so that every load of
16-bit operands serves it as it is (by TMA too), and a unit is taken apart in registers into two fp16 values
(``unpack``; four of four bits). Even and odd columns are two half-sized problems: two products a tile for the scores,
S^T = K_even Q_even^T + K_odd Q_odd^T, and two accumulators. Keys lead in every product (``kq``): the long KV side fills
the tensor cores' M, and as few as eight query rows their N.

Scales never touch K or V. K's multiply scores; those of a whole tensor or head are folded into the softmax scale. V's
multiply probabilities when they are per token, and the output otherwise. So K and V are never rounded, as they are when
they are dequantised to the queries' dtype first. Only what groups of columns or runs of tokens share cannot be kept out
(``grouped``).

Nor do zero points: of K, every number of a token has the same one, which adds its multiple of the query's sum to the
score; of V, the same to every column of the output (``zeros_of_values``). Unsigned numbers are taken apart as numbers
about 0, from which CENTRE was subtracted: that is a zero point as well.

Programs, splits, masks, bounds, lengths, pages and partial results are those of ``split_kv_decode``.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .grouped import dequantise_pair
from .heads import head_start
from .masking import apply_mask_by_row, key_bias
from .paging import page_rows, prefetch_paged_l2, tile_pages
from .prefetch import prefetch_tile_l2
from .products import multiply
from .rounding import round_to
from .softmax import online_softmax, sink_statistics, soft_cap, store_lse
from .split_plan import active_splits, balanced_counts, balanced_split, guessed_begin, split_range, valid_keys
from .unpack import even_columns, unpack_columns
from .zeros import zeros_of_keys, zeros_of_values

# Probabilities reach the product in fp16, of which they use 39 binary orders of magnitude and not only 24.
PROBABILITY_UNIT = tl.constexpr(2.0**14)
# V's scales of a program are taken relative to the largest so far, which is never less than this.
SMALLEST_PEAK = tl.constexpr(2.0**-100)


@triton.jit
def load_units(
    head_ptr, descriptor, sequence, head, first, end, row_stride,
    UNITS: tl.constexpr, BLOCK_UNITS: tl.constexpr, BLOCK_KV: tl.constexpr, TMA: tl.constexpr, WHOLE: tl.constexpr,
    pages, page_stride, PAGED: tl.constexpr, PAGE_SIZE: tl.constexpr, TILES_IN_PAGES: tl.constexpr,
):  # fmt: skip
    """Rows [first, first + BLOCK_KV) of one head as (BLOCK_KV, BLOCK_UNITS). Units past UNITS are 0. A tile that is not
    WHOLE never comes by TMA, which knows the cache's capacity and not ``end``: rows beyond it hold whatever was left
    there, NaN perhaps, and are 0 here (0 * NaN is NaN)."""
    if TMA and WHOLE:
        if PAGED:
            tile = descriptor.load([pages, head, first % PAGE_SIZE, 0]).reshape([BLOCK_KV, BLOCK_UNITS])
        else:
            tile = descriptor.load([sequence, head, first, 0]).reshape([BLOCK_KV, BLOCK_UNITS])
    else:
        rows = tl.arange(0, BLOCK_KV)
        columns = tl.arange(0, BLOCK_UNITS)
        if PAGED:
            starts = page_rows(pages, first, page_stride, row_stride, BLOCK_KV, PAGE_SIZE, TILES_IN_PAGES)
            pointers = head_ptr + starts[:, None] + columns[None, :]
        else:
            pointers = (
                head_ptr
                + tl.cast(first, tl.int64) * row_stride
                + rows.to(tl.int64)[:, None] * row_stride
                + columns[None, :]
            )
        if WHOLE and UNITS == BLOCK_UNITS:
            tile = tl.load(pointers)
        elif WHOLE:
            tile = tl.load(pointers, mask=(columns < UNITS)[None, :], other=0)
        else:
            tile = tl.load(pointers, mask=(first + rows < end)[:, None] & (columns < UNITS)[None, :], other=0)
    return tile


@triton.jit
def load_scales(
    head_ptr, first, end, STRIDE: tl.constexpr, BLOCK_KV: tl.constexpr, WHOLE: tl.constexpr,
    pages, page_stride, PAGED: tl.constexpr, PAGE_SIZE: tl.constexpr, TILES_IN_PAGES: tl.constexpr,
):  # fmt: skip
    """The scales of keys [first, first + BLOCK_KV), fp32 (BLOCK_KV,); 0 from ``end`` on."""
    keys = first + tl.arange(0, BLOCK_KV)
    if PAGED:
        pointers = head_ptr + page_rows(pages, first, page_stride, STRIDE, BLOCK_KV, PAGE_SIZE, TILES_IN_PAGES)
    else:
        pointers = head_ptr + keys.to(tl.int64) * STRIDE
    if WHOLE:
        scales = tl.load(pointers)
    else:
        scales = tl.load(pointers, mask=keys < end, other=0.0)
    return scales.to(tl.float32)


@triton.jit
def load_zeros(
    head_ptr, first, end, STRIDE: tl.constexpr, BLOCK_KV: tl.constexpr, WHOLE: tl.constexpr,
    pages, page_stride, PAGED: tl.constexpr, PAGE_SIZE: tl.constexpr, TILES_IN_PAGES: tl.constexpr,
):  # fmt: skip
    """As ``load_scales``; zeros where there is no tensor of them."""
    if head_ptr is None:
        zeros = tl.zeros([BLOCK_KV], tl.float32)
    else:
        zeros = load_scales(
            head_ptr, first, end, STRIDE, BLOCK_KV, WHOLE, pages, page_stride, PAGED, PAGE_SIZE, TILES_IN_PAGES
        )
    return zeros


@triton.jit
def powers_of_two(q):
    """For fp32 rows (rows, columns): factors by which to multiply each so that its largest magnitude lies in
    [2**14, 2**15), and their inverses. Powers of two, so that a bf16 or fp16 query loses nothing in fp16 but what is
    2**38 times smaller than the largest of its row; its range would not fit otherwise."""
    peak = tl.maximum(tl.max(tl.abs(q), 1), 2.0**-100)
    exponent = peak.to(tl.int32, bitcast=True) >> 23
    factor = ((268 - exponent) << 23).to(tl.float32, bitcast=True)
    inverse = ((exponent - 14) << 23).to(tl.float32, bitcast=True)
    return factor, inverse


@triton.jit
def attend_tile(
    q_even, q_odd, maximum, total, peak, offset, even, odd,
    k_head_ptr, v_head_ptr, k_descriptor, v_descriptor, k_scale_ptr, v_scale_ptr,
    mask_ptr, mask_row_offsets, mask_key_stride, sequence, kv_head, first, end, clean_first, clean_end,
    row_query, row_scale, softcap, k_row_stride, v_row_stride,
    K_UNITS: tl.constexpr, V_UNITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_KV: tl.constexpr,
    FORMAT: tl.constexpr, ASSEMBLY: tl.constexpr, K_SCALE_STRIDE: tl.constexpr, V_SCALE_STRIDE: tl.constexpr,
    MASK: tl.constexpr, MASK_PER_ROW: tl.constexpr, CAUSAL: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr,
    EXP2_SCALE: tl.constexpr, WHOLE: tl.constexpr,
    row_last, pages, k_page_stride, v_page_stride, k_scale_page_stride, v_scale_page_stride,
    CAUSAL_TAIL: tl.constexpr, PAGED: tl.constexpr, PAGE_SIZE: tl.constexpr, TILES_IN_PAGES: tl.constexpr,
    k_zero_ptr, v_zero_ptr, k_zero_page_stride, v_zero_page_stride, query_sum, score_sum, value_scale,
    K_ZERO: tl.constexpr, V_ZERO: tl.constexpr, K_ZERO_STRIDE: tl.constexpr, V_ZERO_STRIDE: tl.constexpr,
    CENTRE: tl.constexpr, V_RANGE: tl.constexpr,
    PACKED: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    like_ptr, K_GROUP: tl.constexpr, K_GROUP_ROWS: tl.constexpr, K_GROUP_COLUMNS: tl.constexpr,
    K_SCALE_ROW: tl.constexpr, K_SCALE_COLUMN: tl.constexpr, K_ZERO_ROW: tl.constexpr, K_ZERO_COLUMN: tl.constexpr,
    V_GROUP: tl.constexpr, V_GROUP_ROWS: tl.constexpr, V_GROUP_COLUMNS: tl.constexpr,
    V_SCALE_ROW: tl.constexpr, V_SCALE_COLUMN: tl.constexpr, V_ZERO_ROW: tl.constexpr, V_ZERO_COLUMN: tl.constexpr,
):  # fmt: skip
    """Fold keys [first, first + BLOCK_KV) into the running softmax and the accumulators (BLOCK_V, rows) of even and odd
    value columns. A stride of 0 says that a scale is not per token. ``peak`` is the largest of V's token scales so far:
    the accumulators are relative to it, so that a probability times a scale is at most 1. ``pages`` are those of a
    paged cache that the keys lie in, and ``row_last`` the last key that a row sees where there is a CAUSAL_TAIL.
    ``offset`` (rows,) is what V's zeros add to every column, in the values' own units, and ``value_scale`` V's scale
    where it is not per token; ``query_sum`` and ``score_sum`` are as in ``zeros_of_keys``."""
    keys = first + tl.arange(0, BLOCK_KV)
    k = load_units(
        k_head_ptr, k_descriptor, sequence, kv_head, first, end, k_row_stride, K_UNITS, BLOCK_K, BLOCK_KV, TMA, WHOLE,
        pages, k_page_stride, PAGED, PAGE_SIZE, TILES_IN_PAGES,
    )  # fmt: skip
    # Asked for before it is needed, so that both loads are in flight where the loop is not pipelined.
    v = load_units(
        v_head_ptr, v_descriptor, sequence, kv_head, first, end, v_row_stride, V_UNITS, BLOCK_V, BLOCK_KV, TMA, WHOLE,
        pages, v_page_stride, PAGED, PAGE_SIZE, TILES_IN_PAGES,
    )  # fmt: skip
    k_even = unpack_columns(k, FORMAT, False, ASSEMBLY, PACKED)
    k_odd = unpack_columns(k, FORMAT, True, ASSEMBLY, PACKED)
    if K_GROUP != "none":
        k_even, k_odd = dequantise_pair(
            k_even, k_odd, k_scale_ptr, k_zero_ptr, keys, end, HEAD_DIM, FORMAT, K_GROUP, K_GROUP_ROWS, K_GROUP_COLUMNS,
            K_SCALE_ROW, K_SCALE_COLUMN, K_ZERO_ROW, K_ZERO_COLUMN, CENTRE, like_ptr.dtype.element_ty, UPCAST,
        )  # fmt: skip
    scores = multiply(k_even, q_even, None, UPCAST)
    scores = multiply(k_odd, q_odd, scores, UPCAST)
    k_zero = None
    if K_ZERO != "none":
        k_zero = load_zeros(
            k_zero_ptr, first, end, K_ZERO_STRIDE, BLOCK_KV, WHOLE,
            pages, k_zero_page_stride, PAGED, PAGE_SIZE, TILES_IN_PAGES,
        )  # fmt: skip
        scores += zeros_of_keys(k_zero, query_sum, K_ZERO == "after", CENTRE)
    scores *= row_scale[None, :]
    if K_SCALE_STRIDE > 0:
        k_scale = load_scales(
            k_scale_ptr, first, end, K_SCALE_STRIDE, BLOCK_KV, WHOLE,
            pages, k_scale_page_stride, PAGED, PAGE_SIZE, TILES_IN_PAGES,
        )  # fmt: skip
        scores *= k_scale[:, None]
    if K_ZERO == "after":
        scores += k_zero[:, None] * score_sum[None, :]  # type: ignore[index]
    if softcap is not None:
        scores = soft_cap(scores, softcap)
    if MASK != "none":
        needed = ((keys < clean_first) | (keys >= clean_end)) & (keys < end)
        if MASK_PER_ROW:
            scores = apply_mask_by_row(
                scores, mask_ptr, mask_row_offsets, mask_key_stride, keys, needed, MASK == "additive", 0
            )
        else:
            # Most masks hide nothing inside their bounds (a prefix, left padding): then nothing is loaded.
            wanted = (first < clean_first) | (tl.minimum(first + BLOCK_KV, end) > clean_end)
            scores += key_bias(mask_ptr, mask_key_stride, keys, needed, wanted, MASK == "additive")[:, None]
    if not WHOLE:
        scores = tl.where((keys < end)[:, None], scores, float("-inf"))
    if CAUSAL:
        scores = tl.where(keys[:, None] <= row_query[None, :], scores, float("-inf"))
    if CAUSAL_TAIL:
        scores = tl.where(keys[:, None] <= row_last[None, :], scores, float("-inf"))

    probabilities, maximum, total, shrink = online_softmax(scores, maximum, total, EXP2_SCALE, 0)
    if V_ZERO != "none":
        offset *= shrink
    v_even = unpack_columns(v, FORMAT, False, ASSEMBLY, PACKED)
    v_odd = unpack_columns(v, FORMAT, True, ASSEMBLY, PACKED)
    if V_GROUP != "none":
        v_even, v_odd = dequantise_pair(
            v_even, v_odd, v_scale_ptr, v_zero_ptr, keys, end, VALUE_DIM, FORMAT, V_GROUP, V_GROUP_ROWS,
            V_GROUP_COLUMNS, V_SCALE_ROW, V_SCALE_COLUMN, V_ZERO_ROW, V_ZERO_COLUMN, CENTRE,
            like_ptr.dtype.element_ty, UPCAST,
        )  # fmt: skip
        weights = round_to(probabilities, like_ptr.dtype.element_ty, UPCAST)
    elif V_SCALE_STRIDE > 0:
        v_scale = load_scales(
            v_scale_ptr, first, end, V_SCALE_STRIDE, BLOCK_KV, WHOLE,
            pages, v_scale_page_stride, PAGED, PAGE_SIZE, TILES_IN_PAGES,
        )  # fmt: skip
        new_peak = tl.maximum(peak, tl.max(tl.abs(v_scale), 0))
        shrink *= peak / new_peak
        peak = new_peak
        weights = (probabilities * (v_scale * (PROBABILITY_UNIT / peak))[:, None]).to(tl.float16)
    else:
        weights = (probabilities * PROBABILITY_UNIT).to(tl.float16)
    if V_ZERO != "none":
        v_zero = load_zeros(
            v_zero_ptr, first, end, V_ZERO_STRIDE, BLOCK_KV, WHOLE,
            pages, v_zero_page_stride, PAGED, PAGE_SIZE, TILES_IN_PAGES,
        )  # fmt: skip
        if V_SCALE_STRIDE > 0:
            token_scale, unit = v_scale, peak / PROBABILITY_UNIT
        else:
            token_scale, unit = tl.zeros_like(v_zero) + value_scale, value_scale / PROBABILITY_UNIT
        offset += zeros_of_values(
            probabilities, weights.to(tl.float32), v_zero, token_scale, unit, V_ZERO == "after", CENTRE, V_RANGE
        )
    even = multiply(tl.trans(v_even), weights, even * shrink[None, :], UPCAST)
    odd = multiply(tl.trans(v_odd), weights, odd * shrink[None, :], UPCAST)
    return maximum, total, peak, offset, even, odd


@triton.jit
def prefetch_tiles(
    k_head_ptr, v_head_ptr, target, limit, k_row_stride, v_row_stride,
    K_UNITS: tl.constexpr, V_UNITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_KV: tl.constexpr,
    PREFETCH_BULK: tl.constexpr, EVICTION: tl.constexpr, ROWS_ADJACENT: tl.constexpr,
    table_ptr, k_page_stride, v_page_stride, PAGED: tl.constexpr, PAGE_SIZE: tl.constexpr, TILES_IN_PAGES: tl.constexpr,
):  # fmt: skip
    """Ask L2 for the tiles of K and V at ``target``, if that is below ``limit``."""
    if PAGED:
        prefetch_paged_l2(
            k_head_ptr, v_head_ptr, table_ptr, target, limit, k_page_stride, v_page_stride, k_row_stride, v_row_stride,
            K_UNITS, V_UNITS, BLOCK_K, BLOCK_V, BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT, PAGE_SIZE,
            TILES_IN_PAGES,
        )  # fmt: skip
    else:
        prefetch_tile_l2(
            k_head_ptr, target, limit, k_row_stride, K_UNITS, BLOCK_K, BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT
        )
        prefetch_tile_l2(
            v_head_ptr, target, limit, v_row_stride, V_UNITS, BLOCK_V, BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT
        )


@triton.jit
def attend_range(
    q_even, q_odd, maximum, total, peak, offset, even, odd,
    k_head_ptr, v_head_ptr, k_descriptor, v_descriptor, k_scale_ptr, v_scale_ptr,
    mask_ptr, mask_row_offsets, mask_key_stride, sequence, kv_head, first, limit, step, end, clean_first, clean_end,
    row_query, row_scale, softcap, k_row_stride, v_row_stride,
    K_UNITS: tl.constexpr, V_UNITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_KV: tl.constexpr,
    FORMAT: tl.constexpr, ASSEMBLY: tl.constexpr, K_SCALE_STRIDE: tl.constexpr, V_SCALE_STRIDE: tl.constexpr,
    MASK: tl.constexpr, MASK_PER_ROW: tl.constexpr, CAUSAL: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr,
    EXP2_SCALE: tl.constexpr, PREFETCH_DEPTH: tl.constexpr, PREFETCH_BULK: tl.constexpr, EVICTION: tl.constexpr,
    ROWS_ADJACENT: tl.constexpr,
    WHOLE: tl.constexpr,
    row_last, table_ptr, k_page_stride, v_page_stride, k_scale_page_stride, v_scale_page_stride,
    CAUSAL_TAIL: tl.constexpr, PAGED: tl.constexpr, PAGE_SIZE: tl.constexpr, TILES_IN_PAGES: tl.constexpr,
    k_zero_ptr, v_zero_ptr, k_zero_page_stride, v_zero_page_stride, query_sum, score_sum, value_scale,
    K_ZERO: tl.constexpr, V_ZERO: tl.constexpr, K_ZERO_STRIDE: tl.constexpr, V_ZERO_STRIDE: tl.constexpr,
    CENTRE: tl.constexpr, V_RANGE: tl.constexpr,
    PACKED: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    like_ptr, K_GROUP: tl.constexpr, K_GROUP_ROWS: tl.constexpr, K_GROUP_COLUMNS: tl.constexpr,
    K_SCALE_ROW: tl.constexpr, K_SCALE_COLUMN: tl.constexpr, K_ZERO_ROW: tl.constexpr, K_ZERO_COLUMN: tl.constexpr,
    V_GROUP: tl.constexpr, V_GROUP_ROWS: tl.constexpr, V_GROUP_COLUMNS: tl.constexpr,
    V_SCALE_ROW: tl.constexpr, V_SCALE_COLUMN: tl.constexpr, V_ZERO_ROW: tl.constexpr, V_ZERO_COLUMN: tl.constexpr,
):  # fmt: skip
    """Fold the tiles at ``first``, ``first + step``, ... below ``limit`` in a software-pipelined loop. WHOLE says that
    none is partial. ``table_ptr`` is the sequence's row of a paged cache's table."""
    pages = None
    if PAGED:
        pages = tile_pages(table_ptr, first, limit, BLOCK_KV, PAGE_SIZE, TILES_IN_PAGES)
    for ahead in tl.static_range(1, PREFETCH_DEPTH):
        target = first + ahead * step
        prefetch_tiles(
            k_head_ptr, v_head_ptr, target, limit, k_row_stride, v_row_stride, K_UNITS, V_UNITS, BLOCK_K, BLOCK_V,
            BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT, table_ptr, k_page_stride, v_page_stride, PAGED, PAGE_SIZE,
            TILES_IN_PAGES,
        )  # fmt: skip
    for tile_first in range(first, limit, step):
        next_pages = None
        if PAGED:
            next_pages = tile_pages(table_ptr, tile_first + step, limit, BLOCK_KV, PAGE_SIZE, TILES_IN_PAGES)
        if PREFETCH_DEPTH > 0:
            target = tile_first + PREFETCH_DEPTH * step
            prefetch_tiles(
                k_head_ptr, v_head_ptr, target, limit, k_row_stride, v_row_stride, K_UNITS, V_UNITS, BLOCK_K, BLOCK_V,
                BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT, table_ptr, k_page_stride, v_page_stride, PAGED,
                PAGE_SIZE,
                TILES_IN_PAGES,
            )  # fmt: skip
        maximum, total, peak, offset, even, odd = attend_tile(
            q_even, q_odd, maximum, total, peak, offset, even, odd,
            k_head_ptr, v_head_ptr, k_descriptor, v_descriptor, k_scale_ptr, v_scale_ptr,
            mask_ptr, mask_row_offsets, mask_key_stride, sequence, kv_head, tile_first, end, clean_first, clean_end,
            row_query, row_scale, softcap, k_row_stride, v_row_stride, K_UNITS, V_UNITS, BLOCK_K, BLOCK_V, BLOCK_KV,
            FORMAT, ASSEMBLY, K_SCALE_STRIDE, V_SCALE_STRIDE, MASK, MASK_PER_ROW, CAUSAL, TMA, UPCAST, EXP2_SCALE,
            WHOLE, row_last, pages, k_page_stride, v_page_stride, k_scale_page_stride, v_scale_page_stride, CAUSAL_TAIL,
            PAGED, PAGE_SIZE, TILES_IN_PAGES, k_zero_ptr, v_zero_ptr, k_zero_page_stride, v_zero_page_stride, query_sum,
            score_sum, value_scale, K_ZERO, V_ZERO, K_ZERO_STRIDE, V_ZERO_STRIDE, CENTRE, V_RANGE,
            PACKED, HEAD_DIM, VALUE_DIM, like_ptr, K_GROUP, K_GROUP_ROWS, K_GROUP_COLUMNS, K_SCALE_ROW,
            K_SCALE_COLUMN, K_ZERO_ROW, K_ZERO_COLUMN,
            V_GROUP, V_GROUP_ROWS, V_GROUP_COLUMNS, V_SCALE_ROW, V_SCALE_COLUMN, V_ZERO_ROW, V_ZERO_COLUMN,
        )  # fmt: skip
        if PAGED:
            pages = next_pages
    return maximum, total, peak, offset, even, odd


@triton.jit
def store_columns(
    out_ptr, partial_ptr, values, total, out_rows, partial_rows, row_valid, PARITY: tl.constexpr,
    VALUE_DIM: tl.constexpr, FORMAT: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Write the even (PARITY 0) or odd (1) columns of the output rows, normalised, or of their fp32 partial results. A
    row that saw no key is 0, as in SDPA's safe softmax."""
    columns = (even_columns(values.shape[0], VALUE_DIM, FORMAT) + PARITY)[:, None]
    inside = row_valid[None, :] & (tl.arange(0, values.shape[0]) < VALUE_DIM // 2)[:, None]
    if SPLIT:
        tl.store(partial_ptr + partial_rows[None, :] + columns, values, mask=inside)
    else:
        denominator = tl.where(total == 0.0, 1.0, total)[None, :]
        result = round_to(values / denominator, out_ptr.dtype.element_ty, UPCAST)
        tl.store(out_ptr + out_rows[None, :] + columns, result, mask=inside)


_RUNTIME_INTEGERS = [
    "q_len", "kv_len", "row_tiles", "bounds_stride",
    "q_batch_stride", "q_head_stride", "q_row_stride",
    "k_batch_stride", "k_head_stride", "k_row_stride",
    "v_batch_stride", "v_head_stride", "v_row_stride",
    "k_scale_batch_stride", "k_scale_head_stride", "v_scale_batch_stride", "v_scale_head_stride",
    "k_zero_batch_stride", "k_zero_head_stride", "v_zero_batch_stride", "v_zero_head_stride",
    "mask_batch_stride", "mask_head_stride", "mask_row_stride", "mask_key_stride",
    "out_batch_stride", "out_head_stride", "out_row_stride", "table_stride",
]  # fmt: skip


# Integers are not specialised: a cache that grows by one key a step must not compile a kernel a step.
@triton.jit(do_not_specialize=_RUNTIME_INTEGERS)
def quantised_decode(
    q_ptr,
    k_ptr,
    v_ptr,
    k_descriptor,
    v_descriptor,
    k_scale_ptr,
    v_scale_ptr,
    k_zero_ptr,
    v_zero_ptr,
    mask_ptr,
    bounds_ptr,
    out_ptr,
    partial_ptr,
    stats_ptr,
    lengths_ptr,
    table_ptr,
    sink_ptr,
    lse_ptr,
    score_scale,
    softcap,
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
    k_scale_batch_stride,
    k_scale_head_stride,
    v_scale_batch_stride,
    v_scale_head_stride,
    k_zero_batch_stride,
    k_zero_head_stride,
    v_zero_batch_stride,
    v_zero_head_stride,
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
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PACKED: tl.constexpr,
    SPLIT: tl.constexpr,
    Q_STRIDE_UNIT: tl.constexpr,
    KV_STRIDE_UNIT: tl.constexpr,
    FORMAT: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    K_SCALE_STRIDE: tl.constexpr,
    V_SCALE_STRIDE: tl.constexpr,
    K_GROUP: tl.constexpr,
    K_GROUP_ROWS: tl.constexpr,
    K_GROUP_COLUMNS: tl.constexpr,
    K_SCALE_ROW: tl.constexpr,
    K_SCALE_COLUMN: tl.constexpr,
    K_ZERO_ROW: tl.constexpr,
    K_ZERO_COLUMN: tl.constexpr,
    V_GROUP: tl.constexpr,
    V_GROUP_ROWS: tl.constexpr,
    V_GROUP_COLUMNS: tl.constexpr,
    V_SCALE_ROW: tl.constexpr,
    V_SCALE_COLUMN: tl.constexpr,
    V_ZERO_ROW: tl.constexpr,
    V_ZERO_COLUMN: tl.constexpr,
    K_ZERO: tl.constexpr,
    V_ZERO: tl.constexpr,
    K_ZERO_STRIDE: tl.constexpr,
    V_ZERO_STRIDE: tl.constexpr,
    CENTRE: tl.constexpr,
    V_RANGE: tl.constexpr,
    MASK: tl.constexpr,
    MASK_PER_ROW: tl.constexpr,
    CAUSAL: tl.constexpr,
    TMA: tl.constexpr,
    PREFETCH_DEPTH: tl.constexpr,
    PREFETCH_BULK: tl.constexpr,
    EVICTION: tl.constexpr,
    ROWS_ADJACENT: tl.constexpr,
    PARTITION: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    PROLOGUE_PREFETCH: tl.constexpr,
    LAUNCH_OVERLAP: tl.constexpr,
    EXP2_SCALE: tl.constexpr,
    UPCAST: tl.constexpr,
    CAUSAL_TAIL: tl.constexpr,
    PAGED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILES_IN_PAGES: tl.constexpr,
):
    """Grid (batch * kv_heads * row_tiles, num_splits); SPLIT says whether num_splits is more than 1.

    k and v are int16 (batch, kv_heads, kv_len, dim / 2), or dim / 4 where numbers are PACKED two a byte; strides are in
    multiples of KV_STRIDE_UNIT units; BLOCK_K and BLOCK_V are powers of two that hold a row's units. Scales are finite;
    absent where all are 1.
    K_SCALE_STRIDE and V_SCALE_STRIDE are the elements between two tokens' scales, 0 where tokens share one. K_ZERO and
    V_ZERO are ``none``, ``before`` (zeros are subtracted from numbers, then scaled) or ``after`` (they are added to
    scaled numbers), with pointers and strides like scales'; a pointer of None stands for zeros that are 0. CENTRE is
    what stored numbers are more than what ``unpack_byte`` makes of them; V_RANGE is the largest magnitude of those.
    K_GROUP and V_GROUP are ``none``, or where zeros are as in K_ZERO for scales and zeros that GROUP_ROWS tokens and
    GROUP_COLUMNS columns share: then strides are between those of two groups, and there is no K_ZERO.
    ``score_scale``, ``softcap``, sinks, ``EXP2_SCALE``, partial results, statistics, lengths, pages and the table are
    those of ``split_kv_decode``; scales' batch strides, too, lead from page to page.
    """
    K_UNITS: tl.constexpr = HEAD_DIM // 4 if PACKED else HEAD_DIM // 2
    V_UNITS: tl.constexpr = VALUE_DIM // 4 if PACKED else VALUE_DIM // 2
    K_PAIRS: tl.constexpr = BLOCK_K * 2 if PACKED else BLOCK_K
    V_PAIRS: tl.constexpr = BLOCK_V * 2 if PACKED else BLOCK_V
    BALANCED: tl.constexpr = PARTITION == "balanced"
    # As in split_kv_decode.
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
    row_tile = flat % row_tiles
    kv_head = flat // row_tiles % KV_HEADS
    sequence = flat // (row_tiles * KV_HEADS)
    k_row = tl.cast(k_row_stride, tl.int64) * KV_STRIDE_UNIT
    v_row = tl.cast(v_row_stride, tl.int64) * KV_STRIDE_UNIT

    if PROLOGUE_PREFETCH:
        # As in split_kv_decode: before the kernel before this one is waited for, and so by a guess.
        begin = guessed_begin(kv_len, split, num_splits, BLOCK_KV, PARTITION)
        prefetch_tile_l2(
            head_start(k_ptr, sequence, kv_head, k_batch_stride, k_head_stride, KV_STRIDE_UNIT, False), begin, kv_len,
            k_row, K_UNITS, BLOCK_K, BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT,
        )  # fmt: skip
        prefetch_tile_l2(
            head_start(v_ptr, sequence, kv_head, v_batch_stride, v_head_stride, KV_STRIDE_UNIT, False), begin, kv_len,
            v_row, V_UNITS, BLOCK_V, BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT,
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
        batch_split = (split * tl.num_programs(0) + flat) // (KV_HEADS * row_tiles)
        sequence, split, splits = balanced_split(counts, up_to, batch_split, BLOCK_BATCH)
        works = sequence < batch
        sequence = tl.minimum(sequence, batch - 1)
        slot = kv_head.to(tl.int64) * batch * num_splits + batch_split
    else:
        splits = num_splits
        slot = (sequence.to(tl.int64) * KV_HEADS + kv_head) * num_splits + split
    # Queries before bounds, as in split_kv_decode.
    rows = GROUP * q_len
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_valid = row < rows
    row_head = kv_head * GROUP + row // q_len
    row_query = row % q_len
    sequence_wide = sequence.to(tl.int64)

    q_rows = (
        sequence_wide * q_batch_stride + row_head.to(tl.int64) * q_head_stride + row_query * q_row_stride
    ) * Q_STRIDE_UNIT
    q_pointers = q_ptr + q_rows[:, None] + even_columns(K_PAIRS, HEAD_DIM, FORMAT)[None, :]
    q_inside = row_valid[:, None] & (tl.arange(0, K_PAIRS) < HEAD_DIM // 2)[None, :]
    even_queries = tl.load(q_pointers, mask=q_inside, other=0.0)
    odd_queries = tl.load(q_pointers + 1, mask=q_inside, other=0.0)
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
        row_last = None
        if CAUSAL_TAIL:
            row_last = row_query + (end_key - q_len)
        q_even = even_queries
        q_odd = odd_queries
        row_scale = tl.full([BLOCK_M], 1.0, tl.float32)
        if K_GROUP == "none":
            q_even = q_even.to(tl.float32)
            q_odd = q_odd.to(tl.float32)
            factor, row_scale = powers_of_two(tl.maximum(tl.abs(q_even), tl.abs(q_odd)))
            q_even = (q_even * factor[:, None]).to(tl.float16)
            q_odd = (q_odd * factor[:, None]).to(tl.float16)
        q_even = tl.trans(q_even)
        q_odd = tl.trans(q_odd)
        query_sum = None
        score_sum = None
        if K_ZERO != "none":
            query_sum = tl.sum(q_even.to(tl.float32), 0) + tl.sum(q_odd.to(tl.float32), 0)
        row_scale *= score_scale
        if K_ZERO == "after":
            score_sum = query_sum * row_scale

        k_head_ptr = head_start(k_ptr, sequence, kv_head, k_batch_stride, k_head_stride, KV_STRIDE_UNIT, PAGED)
        v_head_ptr = head_start(v_ptr, sequence, kv_head, v_batch_stride, v_head_stride, KV_STRIDE_UNIT, PAGED)
        table_row = None
        k_page = None
        v_page = None
        k_scale_page = None
        v_scale_page = None
        k_zero_page = None
        v_zero_page = None
        if PAGED:
            table_row = table_ptr + sequence_wide * table_stride
            k_page = tl.cast(k_batch_stride, tl.int64) * KV_STRIDE_UNIT
            v_page = tl.cast(v_batch_stride, tl.int64) * KV_STRIDE_UNIT
            k_scale_page = tl.cast(k_scale_batch_stride, tl.int64)
            v_scale_page = tl.cast(v_scale_batch_stride, tl.int64)
        if PAGED and K_ZERO != "none":
            k_zero_page = tl.cast(k_zero_batch_stride, tl.int64)
        if PAGED and V_ZERO != "none":
            v_zero_page = tl.cast(v_zero_batch_stride, tl.int64)
        k_scales = k_scale_ptr
        v_scales = v_scale_ptr
        result_scale = 1.0
        if V_GROUP == "none":
            result_scale = 1.0 / PROBABILITY_UNIT
        if k_scale_ptr is not None:
            k_scales = head_start(k_scale_ptr, sequence, kv_head, k_scale_batch_stride, k_scale_head_stride, 1, PAGED)
            if K_SCALE_STRIDE == 0 and K_GROUP == "none":
                row_scale *= tl.load(k_scales).to(tl.float32)
        if v_scale_ptr is not None:
            v_scales = head_start(v_scale_ptr, sequence, kv_head, v_scale_batch_stride, v_scale_head_stride, 1, PAGED)
            if V_SCALE_STRIDE == 0 and V_GROUP == "none":
                result_scale *= tl.load(v_scales).to(tl.float32)
        k_zeros = None
        v_zeros = None
        value_scale = None
        if k_zero_ptr is not None:
            k_zeros = head_start(k_zero_ptr, sequence, kv_head, k_zero_batch_stride, k_zero_head_stride, 1, PAGED)
        if v_zero_ptr is not None:
            v_zeros = head_start(v_zero_ptr, sequence, kv_head, v_zero_batch_stride, v_zero_head_stride, 1, PAGED)
        if V_ZERO != "none":
            value_scale = result_scale * PROBABILITY_UNIT

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
        peak = tl.full([], SMALLEST_PEAK, tl.float32)
        offset = tl.zeros([BLOCK_M], tl.float32)
        even = tl.zeros([V_PAIRS, BLOCK_M], tl.float32)
        odd = tl.zeros([V_PAIRS, BLOCK_M], tl.float32)

        # TMA loads cannot check rows: the last, partial tile is taken out of the loop. Pointer loads can, for 5 to 9 %
        # more instructions in the loop (sm_90), and so there is only one copy of its code.
        PEEL: tl.constexpr = TMA
        whole_end = first_key + tl.maximum(end_key - first_key, 0) // BLOCK_KV * BLOCK_KV
        loop_end = limit
        if PEEL:
            loop_end = tl.minimum(limit, whole_end)
        maximum, total, peak, offset, even, odd = attend_range(
            q_even, q_odd, maximum, total, peak, offset, even, odd,
            k_head_ptr, v_head_ptr, k_descriptor, v_descriptor, k_scales, v_scales, mask_base, mask_rows,
            mask_key_stride, sequence, kv_head, first, loop_end, step, end_key, clean_first, clean_end,
            row_query, row_scale, softcap, k_row, v_row, K_UNITS, V_UNITS, BLOCK_K, BLOCK_V, BLOCK_KV,
            FORMAT, ASSEMBLY, K_SCALE_STRIDE, V_SCALE_STRIDE, MASK, MASK_PER_ROW, CAUSAL, TMA, UPCAST, EXP2_SCALE,
            PREFETCH_DEPTH, PREFETCH_BULK, EVICTION, ROWS_ADJACENT, PEEL,
            row_last, table_row, k_page, v_page, k_scale_page, v_scale_page, CAUSAL_TAIL, PAGED, PAGE_SIZE,
            TILES_IN_PAGES, k_zeros, v_zeros, k_zero_page, v_zero_page, query_sum, score_sum, value_scale,
            K_ZERO, V_ZERO, K_ZERO_STRIDE, V_ZERO_STRIDE, CENTRE, V_RANGE,
            PACKED, HEAD_DIM, VALUE_DIM, q_ptr, K_GROUP, K_GROUP_ROWS, K_GROUP_COLUMNS, K_SCALE_ROW,
            K_SCALE_COLUMN, K_ZERO_ROW, K_ZERO_COLUMN,
            V_GROUP, V_GROUP_ROWS, V_GROUP_COLUMNS, V_SCALE_ROW, V_SCALE_COLUMN, V_ZERO_ROW, V_ZERO_COLUMN,
        )  # fmt: skip
        if PEEL and (whole_end < limit) & (whole_end >= first) & ((whole_end - first) % step == 0):
            pages = None
            if PAGED:
                pages = tile_pages(table_row, whole_end, limit, BLOCK_KV, PAGE_SIZE, TILES_IN_PAGES)
            maximum, total, peak, offset, even, odd = attend_tile(
                q_even, q_odd, maximum, total, peak, offset, even, odd,
                k_head_ptr, v_head_ptr, k_descriptor, v_descriptor, k_scales, v_scales, mask_base, mask_rows,
                mask_key_stride, sequence, kv_head, whole_end, end_key, clean_first, clean_end,
                row_query, row_scale, softcap, k_row, v_row, K_UNITS, V_UNITS, BLOCK_K, BLOCK_V, BLOCK_KV,
                FORMAT, ASSEMBLY, K_SCALE_STRIDE, V_SCALE_STRIDE, MASK, MASK_PER_ROW, CAUSAL, TMA, UPCAST, EXP2_SCALE,
                False, row_last, pages, k_page, v_page, k_scale_page, v_scale_page, CAUSAL_TAIL, PAGED, PAGE_SIZE,
                TILES_IN_PAGES, k_zeros, v_zeros, k_zero_page, v_zero_page, query_sum, score_sum, value_scale,
                K_ZERO, V_ZERO, K_ZERO_STRIDE, V_ZERO_STRIDE, CENTRE, V_RANGE,
                PACKED, HEAD_DIM, VALUE_DIM, q_ptr, K_GROUP, K_GROUP_ROWS, K_GROUP_COLUMNS, K_SCALE_ROW,
            K_SCALE_COLUMN, K_ZERO_ROW, K_ZERO_COLUMN,
                V_GROUP, V_GROUP_ROWS, V_GROUP_COLUMNS, V_SCALE_ROW, V_SCALE_COLUMN, V_ZERO_ROW, V_ZERO_COLUMN,
            )  # fmt: skip

        if V_SCALE_STRIDE > 0:
            result_scale *= peak
        even *= result_scale
        odd *= result_scale
        if V_ZERO != "none":
            even += offset[None, :]
            odd += offset[None, :]
        out_rows = (
            sequence_wide * out_batch_stride + row_head.to(tl.int64) * out_head_stride + row_query * out_row_stride
        )
        partial_rows = slot * rows + row
        if SPLIT:
            tl.store(stats_ptr + partial_rows * 2, maximum, mask=row_valid)
            tl.store(stats_ptr + partial_rows * 2 + 1, total, mask=row_valid)
        if lse_ptr is not None and not SPLIT:
            store_lse(lse_ptr + (sequence_wide * KV_HEADS + kv_head) * rows, maximum, total, row, row_valid, EXP2_SCALE)
        store_columns(
            out_ptr, partial_ptr, even, total, out_rows, partial_rows * VALUE_DIM, row_valid, 0,
            VALUE_DIM, FORMAT, SPLIT, UPCAST,
        )  # fmt: skip
        store_columns(
            out_ptr, partial_ptr, odd, total, out_rows, partial_rows * VALUE_DIM, row_valid, 1,
            VALUE_DIM, FORMAT, SPLIT, UPCAST,
        )  # fmt: skip
