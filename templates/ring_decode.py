"""Decode attention over K and V for sm_90: streamed programs with a producer warp (Gluon).

What ``split_kv_decode`` computes where its programs are streamed, with another schedule. A program is 64 query rows,
those that share a KV head padded to what a warpgroup multiplies, and an equal part of the row in which the tiles of all
sequences stand (``split_plan``). Its producer does not stop where a sequence ends: while results are written and the
next queries are read, the next sequence's tiles are on their way.

consumer  one warpgroup: S = Q K^T, the softmax, O = P V with P in registers
producer  one warp: asks TMA for tiles

Tile t of the program lies in buffer b = t % STAGES, and waits for it use the parity (t / STAGES) % 2. Barriers:

    FULL[b]   1 arrival, with the bytes expected, by the producer;      waited for by the consumer
    EMPTY[b]  1 arrival by the consumer, after its products' ends;      waited for by the producer

    producer:  for t: EMPTY(t - STAGES)  ask for tile t
    consumer:  for each sequence: store Q;  for t: FULL(t)  S(t)  softmax  product  EMPTY(t);  write the result

None waits for ever: tile t + STAGES is asked for once tile t is used, for which the consumer waits for nothing that
comes after it. Q is overwritten when S of the last tile before has ended in all warps (barrier).
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gluon_plan import add, uniform
from .gluon_tma import async_load
from .masking import apply_mask_by_row
from .softmax import finite_maximum, sink_statistics, soft_cap, store_lse
from .split_plan import valid_keys

ROWS = gl.constexpr(64)
CONSUMER_WARPS = gl.constexpr(4)
PRODUCER_REGISTERS = gl.constexpr(40)


@gluon.jit
def stream_of_tiles(
    bounds_ptr, bounds_stride, batch, kv_len, q_len, programs, program, lengths_ptr, KEYS: gl.constexpr,
    BLOCK_BATCH: gl.constexpr, HAS_BOUNDS: gl.constexpr, CAUSAL: gl.constexpr, HAS_LENGTHS: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """What ``split_plan`` plans of streamed programs, the same to the last tile: the merge plans there. Tiles that a
    program takes; the tiles [begin, end) of the row that ``program`` takes; the first sequence that these are of, where
    in the row it begins, and how many sequences they are of."""
    sequence = gl.arange(0, BLOCK_BATCH, LAYOUT)
    inside = sequence < batch
    if HAS_BOUNDS:
        row = bounds_ptr + sequence * bounds_stride
        first = gl.maximum(gl.load(row, mask=inside, other=0), 0)
        end = gl.minimum(gl.load(row + 1, mask=inside, other=0), kv_len)
    elif HAS_LENGTHS:
        first = sequence * 0
        lengths = gl.load(lengths_ptr + sequence, mask=inside, other=0)
        end = gl.minimum(gl.maximum(lengths, 0), kv_len).to(gl.int32)
    else:
        first = sequence * 0
        end = sequence * 0 + kv_len
    if CAUSAL:
        end = gl.minimum(end, q_len)
    tiles = gl.where(inside, tiles_between(first, end, KEYS), 0)
    total = uniform(gl.sum(tiles, 0))
    longest = uniform(gl.max(tiles, 0))
    each = (total + programs - 1) // programs
    parts = gl.maximum(longest // each, 1)
    whole = (each + longest - 1) // longest
    aligned = (longest * whole + parts - 1) // parts
    aligns = (total == longest * batch) & (aligned * 16 <= each * 17)
    each = gl.where(aligns, aligned, each)
    begin = program * each
    limit = gl.minimum(begin + each, total)
    up_to = gl.associative_scan(tiles, 0, add)
    before = up_to <= begin
    first_sequence = uniform(gl.sum(before.to(gl.int32), 0))
    start = uniform(gl.sum(gl.where(before, tiles, 0), 0))
    last_sequence = uniform(gl.sum((up_to < limit).to(gl.int32), 0))
    return each, begin, limit, first_sequence, start, last_sequence - first_sequence + 1


@gluon.jit
def tiles_between(first_key, end_key, KEYS: gl.constexpr):
    """Of a sequence. One without keys has one, for a program to write its zeros."""
    return gl.maximum(gl.maximum(end_key - first_key + KEYS - 1, 0) // KEYS, 1)


@gluon.jit
def tiles_of_part(start, count, begin, limit, first_key, end_key, KEYS: gl.constexpr):
    """Of a sequence whose ``count`` tiles begin at ``start`` of the row: the first key of a program that has the tiles
    [begin, limit) of it, and how many tiles with keys are its."""
    first = first_key + gl.maximum(begin - start, 0) * KEYS
    end = gl.minimum(first_key + gl.minimum(limit - start, count) * KEYS, end_key)
    return first, gl.maximum(end - first + KEYS - 1, 0) // KEYS


@gluon.jit
def producer(
    k_descriptor, v_descriptor, k_tiles, v_tiles, bars, bounds_ptr, lengths_ptr, bounds_stride, batch, kv_len, q_len,
    programs, program, kv_head, KEYS: gl.constexpr, DIM: gl.constexpr, STAGES: gl.constexpr,
    BLOCK_BATCH: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Ask for one tile after the other, of one sequence after the other."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    _, begin, limit, first_sequence, start, sequences = stream_of_tiles(
        bounds_ptr, bounds_stride, batch, kv_len, q_len, programs, program, lengths_ptr, KEYS, BLOCK_BATCH,
        bounds_ptr is not None, CAUSAL, lengths_ptr is not None, LAYOUT,
    )  # fmt: skip
    stage = 0
    phase = 1
    for number in range(sequences):
        sequence = first_sequence + number
        first_key, end_key, _, _ = valid_keys(
            bounds_ptr, bounds_stride, sequence, kv_len, q_len, bounds_ptr is not None, CAUSAL, lengths_ptr,
            lengths_ptr is not None,
        )  # fmt: skip
        count = tiles_between(first_key, end_key, KEYS)
        first, part_tiles = tiles_of_part(start, count, begin, limit, first_key, end_key, KEYS)
        start += count
        for tile in range(part_tiles):
            mbarrier.wait(bars.index(STAGES + stage), phase)
            full = bars.index(stage)
            key = first + tile * KEYS
            mbarrier.expect(full, 2 * KEYS * DIM * 2)
            async_load(k_descriptor, [sequence, kv_head, key, 0], full, k_tiles.index(stage))
            async_load(v_descriptor, [sequence, kv_head, key, 0], full, v_tiles.index(stage))
            stage += 1
            if stage == STAGES:
                stage = 0
                phase ^= 1


@gluon.jit
def load_queries(
    q_ptr, first_row, rows, q_len, q_head_stride, q_row_stride, Q_STRIDE_UNIT: gl.constexpr, DIM: gl.constexpr,
    COUNT: gl.constexpr,
):  # fmt: skip
    """COUNT of the program's rows of Q, zeros past ``rows``."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    row = first_row + gl.arange(0, COUNT, gl.SliceLayout(1, layout))
    starts = ((row // q_len).to(gl.int64) * q_head_stride + (row % q_len) * q_row_stride) * Q_STRIDE_UNIT
    pointers = q_ptr + starts[:, None] + gl.arange(0, DIM, gl.SliceLayout(0, layout))[None, :]
    return gl.load(pointers, mask=(row < rows)[:, None], other=0.0)


@gluon.jit
def clear_stale(values, keys, KEYS: gl.constexpr, DIM: gl.constexpr):
    """Zero the rows of a tile that hold no valid key: P is 0 there, but 0 * NaN is NaN."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    for first in gl.static_range(0, KEYS, 16):
        rows = values.slice(first, 16, 0)
        key = first + gl.arange(0, 16, gl.SliceLayout(1, layout))
        content = rows.load(layout)
        rows.store(gl.where((key < keys)[:, None], content, 0.0))


@gluon.jit
def visible(
    s, mask_ptr, mask_start, mask_row_offsets, mask_key_stride, first, end, clean_first, clean_end, q_len, row_query,
    row_last, score_scale, softcap, KEYS: gl.constexpr, MASK: gl.constexpr, MASK_PER_ROW: gl.constexpr,
    CAUSAL: gl.constexpr, CAUSAL_TAIL: gl.constexpr, SCALE_LATER: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Scores of the keys [first, first + KEYS), -inf where a row does not see a key; not scaled yet if SCALE_LATER."""
    key = first + gl.arange(0, KEYS, gl.SliceLayout(0, LAYOUT))
    if not SCALE_LATER:
        s = s * score_scale
        if softcap is not None:
            s = soft_cap(s, softcap)
    if MASK != "none":  # noqa: SIM102 - known while compiling
        if (first < clean_first) | (gl.minimum(first + KEYS, end) > clean_end):
            needed = ((key < clean_first) | (key >= clean_end)) & (key < end)
            if MASK_PER_ROW:
                s = apply_mask_by_row(
                    s, mask_ptr, mask_row_offsets, mask_key_stride, key, needed, MASK == "additive", 1
                )  # fmt: skip
            else:
                pointers = mask_ptr + (mask_start + key.to(gl.int64) * mask_key_stride)
                if MASK == "additive":
                    s = s + gl.load(pointers, mask=needed, other=0.0).to(gl.float32)[None, :]
                else:
                    s = gl.where((gl.load(pointers, mask=needed, other=1) != 0)[None, :], s, float("-inf"))
    if first + KEYS > end:
        s = gl.where((key < end)[None, :], s, float("-inf"))
    if CAUSAL:
        s = gl.where(key[None, :] <= row_query[:, None], s, float("-inf"))
    if CAUSAL_TAIL:  # noqa: SIM102 - known while compiling
        if first + KEYS > end - q_len + 1:
            s = gl.where(key[None, :] <= row_last[:, None], s, float("-inf"))
    return s


@gluon.jit
def fold(s, maximum, total, score_scale, EXP2_SCALE: gl.constexpr, SCALE_LATER: gl.constexpr):
    """One step of the online softmax; scores may be not scaled yet, so that scaling and subtracting are one
    instruction."""
    if SCALE_LATER:
        new_maximum = gl.maximum(maximum, gl.max(s, 1) * score_scale)
        reference = finite_maximum(new_maximum)
        shrink = gl.exp2(maximum - reference)
        p = gl.exp2(s * score_scale - reference[:, None])
    else:
        new_maximum = gl.maximum(maximum, gl.max(s, 1))
        reference = finite_maximum(new_maximum)
        shrink = gl.exp2((maximum - reference) * EXP2_SCALE)
        p = gl.exp2((s - reference[:, None]) * EXP2_SCALE)
    return p, new_maximum, total * shrink + gl.sum(p, 1), shrink


@gluon.jit
def consumer(
    q_ptr, queries, k_tiles, v_tiles, bars, mask_ptr, bounds_ptr, out_ptr, partial_ptr, stats_ptr, lengths_ptr,
    sink_ptr, lse_ptr, score_scale, softcap, bounds_stride, batch, kv_len, kv_heads, q_len, programs, program, kv_head,
    first_row, q_batch_stride, q_head_stride, q_row_stride, mask_batch_stride, mask_head_stride, mask_row_stride,
    mask_key_stride, out_batch_stride, out_head_stride, out_row_stride, GROUP: gl.constexpr, KEYS: gl.constexpr,
    DIM: gl.constexpr, STAGES: gl.constexpr, BLOCK_BATCH: gl.constexpr, Q_STRIDE_UNIT: gl.constexpr,
    MASK: gl.constexpr, MASK_PER_ROW: gl.constexpr, CAUSAL: gl.constexpr, CAUSAL_TAIL: gl.constexpr,
    EXP2_SCALE: gl.constexpr, SCALE_LATER: gl.constexpr,
):  # fmt: skip
    """Fold the tiles of each of the program's sequences into a softmax, and write what comes of it."""
    PLAN: gl.constexpr = gl.BlockedLayout([1], [32], [CONSUMER_WARPS], [0])
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    A_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    # Of 256 columns they would take registers that the plan needs: it would be spilled.
    EARLY_QUERIES: gl.constexpr = DIM <= 128
    each, begin, limit, first_sequence, start, sequences = stream_of_tiles(
        bounds_ptr, bounds_stride, batch, kv_len, q_len, programs, program, lengths_ptr, KEYS, BLOCK_BATCH,
        bounds_ptr is not None, CAUSAL, lengths_ptr is not None, PLAN,
    )  # fmt: skip
    rows = GROUP * q_len
    row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    out_row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, O_LAYOUT))
    columns = gl.arange(0, DIM, gl.SliceLayout(0, O_LAYOUT))
    row_head = kv_head * GROUP + row // q_len
    row_query = row % q_len
    stage = 0
    phase = 0
    for number in range(sequences):
        sequence = first_sequence + number
        sequence_wide = sequence.to(gl.int64)
        own_q_ptr = q_ptr + (
            sequence_wide * q_batch_stride + kv_head.to(gl.int64) * GROUP * q_head_stride
        ) * Q_STRIDE_UNIT  # fmt: skip
        if EARLY_QUERIES:
            # Beside the bounds.
            q = load_queries(own_q_ptr, first_row, rows, q_len, q_head_stride, q_row_stride, Q_STRIDE_UNIT, DIM, ROWS)
        first_key, end, clean_first, clean_end = valid_keys(
            bounds_ptr, bounds_stride, sequence, kv_len, q_len, bounds_ptr is not None, CAUSAL, lengths_ptr,
            lengths_ptr is not None,
        )  # fmt: skip
        count = tiles_between(first_key, end, KEYS)
        first, part_tiles = tiles_of_part(start, count, begin, limit, first_key, end, KEYS)
        if EARLY_QUERIES:
            queries.store(q)
        else:
            for part in gl.static_range(0, ROWS, 16):
                q = load_queries(
                    own_q_ptr, first_row + part, rows, q_len, q_head_stride, q_row_stride, Q_STRIDE_UNIT, DIM, 16
                )
                queries.slice(part, 16, 0).store(q)
        fence_async_shared()
        tl.debug_barrier()
        row_last = None
        if CAUSAL_TAIL:
            row_last = row_query + (end - q_len)
        mask_start = sequence_wide * mask_batch_stride
        mask_rows = mask_start + row_head.to(gl.int64) * mask_head_stride + row_query * mask_row_stride
        if MASK_PER_ROW:
            mask_rows = gl.where(row < rows, mask_rows, -1)
        maximum = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, LAYOUT))
        total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, LAYOUT))
        if sink_ptr is not None:
            maximum, total = sink_statistics(sink_ptr, row_head, (row < rows) & (begin <= start), EXP2_SCALE)
        acc = gl.zeros([ROWS, DIM], gl.float32, O_LAYOUT)
        for tile in range(part_tiles):
            key = first + tile * KEYS
            mbarrier.wait(bars.index(stage), phase)
            values = v_tiles.index(stage)
            if key + KEYS > end:
                clear_stale(values, end - key, KEYS, DIM)
                fence_async_shared()
                tl.debug_barrier()
            s = gl.zeros([ROWS, KEYS], gl.float32, LAYOUT)
            s = warpgroup_mma(queries, k_tiles.index(stage).permute((1, 0)), s, use_acc=False, is_async=True)
            s = warpgroup_mma_wait(0, deps=(s,))
            s = visible(
                s, mask_ptr, mask_start, mask_rows, mask_key_stride, key, end, clean_first, clean_end, q_len,
                row_query, row_last, score_scale, softcap, KEYS, MASK, MASK_PER_ROW, CAUSAL, CAUSAL_TAIL, SCALE_LATER,
                LAYOUT,
            )  # fmt: skip
            p, maximum, total, shrink = fold(s, maximum, total, score_scale, EXP2_SCALE, SCALE_LATER)
            acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, O_LAYOUT))[:, None]
            acc = warpgroup_mma(gl.convert_layout(p.to(values.dtype), A_LAYOUT), values, acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=(acc,))
            tl.debug_barrier()
            mbarrier.arrive(bars.index(STAGES + stage), count=1)
            stage += 1
            if stage == STAGES:
                stage = 0
                phase ^= 1
        first_program = start // each
        last_program = (start + count - 1) // each
        out_total = gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))
        if first_program == last_program:
            starts = (
                sequence_wide * out_batch_stride
                + (kv_head * GROUP + out_row // q_len).to(gl.int64) * out_head_stride
                + (out_row % q_len) * out_row_stride
            )
            result = acc * (1.0 / gl.where(out_total == 0.0, 1.0, out_total))[:, None]
            gl.store(
                out_ptr + starts[:, None] + columns[None, :], result.to(out_ptr.dtype.element_ty),
                mask=(out_row < rows)[:, None],
            )  # fmt: skip
            if lse_ptr is not None:
                lse_head = lse_ptr + (sequence_wide * kv_heads + kv_head) * rows
                store_lse(lse_head, maximum, total, row, row < rows, EXP2_SCALE)
        else:
            slot = (kv_head.to(gl.int64) * (batch + programs) + program + sequence) * rows
            gl.store(stats_ptr + (slot + row) * 2, maximum, mask=row < rows)
            gl.store(stats_ptr + (slot + row) * 2 + 1, total, mask=row < rows)
            gl.store(
                partial_ptr + ((slot + out_row) * DIM)[:, None] + columns[None, :], acc, mask=(out_row < rows)[:, None]
            )
        start += count


_RUNTIME_INTEGERS = [
    "batch", "q_len", "kv_len", "kv_heads", "row_tiles", "bounds_stride",
    "q_batch_stride", "q_head_stride", "q_row_stride",
    "mask_batch_stride", "mask_head_stride", "mask_row_stride", "mask_key_stride",
    "out_batch_stride", "out_head_stride", "out_row_stride",
]  # fmt: skip


@gluon.jit(do_not_specialize=_RUNTIME_INTEGERS)
def ring_decode(
    q_ptr,
    k_descriptor,
    v_descriptor,
    mask_ptr,
    bounds_ptr,
    out_ptr,
    partial_ptr,
    stats_ptr,
    lengths_ptr,
    sink_ptr,
    lse_ptr,
    score_scale,
    softcap,
    batch,
    q_len,
    kv_len,
    kv_heads,
    row_tiles,
    bounds_stride,
    q_batch_stride,
    q_head_stride,
    q_row_stride,
    mask_batch_stride,
    mask_head_stride,
    mask_row_stride,
    mask_key_stride,
    out_batch_stride,
    out_head_stride,
    out_row_stride,
    GROUP: gl.constexpr,
    DIM: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    Q_STRIDE_UNIT: gl.constexpr,
    MASK: gl.constexpr,
    MASK_PER_ROW: gl.constexpr,
    CAUSAL: gl.constexpr,
    CAUSAL_TAIL: gl.constexpr,
    BLOCK_BATCH: gl.constexpr,
    LAUNCH_OVERLAP: gl.constexpr,
    EXP2_SCALE: gl.constexpr,
    SCALE_LATER: gl.constexpr,
):
    """Grid (kv_heads * row_tiles, programs), launched with 4 warps, which are the consumer's.

    Descriptors are of (1, 1, KEYS, DIM) tiles of (batch, kv_heads, kv_len, DIM) caches. SCALE_LATER: ``score_scale`` is
    positive, and all that is between a product of a query and a key and its power of two. Everything else is as in
    ``split_kv_decode``, STREAMED.
    """
    flat = gl.program_id(0)
    program = gl.program_id(1)
    programs = gl.num_programs(1)
    first_row = flat % row_tiles * ROWS
    kv_head = flat // row_tiles

    # As in ``split_kv_decode``. What is read after it by the other warp it reads after these told it to.
    if LAUNCH_OVERLAP:
        gdc_wait()
        gdc_launch_dependents()

    dtype: gl.constexpr = k_descriptor.dtype
    tile_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    queries = gl.allocate_shared_memory(dtype, [ROWS, DIM], tile_layout)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], tile_layout)
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], tile_layout)
    bars = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(2 * STAGES):
        mbarrier.init(bars.index(index), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (consumer, (
                q_ptr, queries, k_tiles, v_tiles, bars, mask_ptr, bounds_ptr, out_ptr, partial_ptr, stats_ptr,
                lengths_ptr, sink_ptr, lse_ptr, score_scale, softcap, bounds_stride, batch, kv_len, kv_heads, q_len,
                programs, program, kv_head, first_row, q_batch_stride, q_head_stride, q_row_stride, mask_batch_stride,
                mask_head_stride, mask_row_stride, mask_key_stride, out_batch_stride, out_head_stride, out_row_stride,
                GROUP, KEYS, DIM, STAGES, BLOCK_BATCH, Q_STRIDE_UNIT, MASK, MASK_PER_ROW, CAUSAL, CAUSAL_TAIL,
                EXP2_SCALE, SCALE_LATER,
            )),
            (producer, (
                k_descriptor, v_descriptor, k_tiles, v_tiles, bars, bounds_ptr, lengths_ptr, bounds_stride, batch,
                kv_len, q_len, programs, program, kv_head, KEYS, DIM, STAGES, BLOCK_BATCH, CAUSAL,
            )),
        ],
        [1],
        [PRODUCER_REGISTERS],
    )  # fmt: skip
