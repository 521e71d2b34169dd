"""Decode attention over a latent cache for sm_90: explicit warpgroup products, TMA, warp specialisation (Gluon).

What ``latent_decode`` computes, for latents of 512 columns and rotary keys of 64, with another schedule. One program is
64 query rows of one sequence against one share of its keys, in tiles of 64 keys. A tile of the cache, 64 x 576, is read
once into shared memory and used for both products: S = Q K^T over all columns, O = P V over the first 512. The 64 x 512
fp32 output is held by two warp groups, 256 columns each:

leader    computes S and the softmax, hands P and the factors by which sums shrink to the follower, and multiplies P
          with the left half of the latents
follower  multiplies P with the right half of the latents
producer  one warp: asks TMA for tiles

Tile t lies in buffer b = t % STAGES, and waits for it use the parity (t / STAGES) % 2. Barriers:

    FULL[b]     1 arrival, with the bytes expected, by the producer;                   waited for by the leader
    P_FULL[b]   1 arrival by the leader, P(t) and the factors written and fenced;      waited for by the follower
    EMPTY[b]    2 arrivals, by leader and follower after their products' ends;         waited for by the producer
    DONE        1 arrival by the leader, the sums written;                             waited for by the follower

    producer:  for t: EMPTY(t - STAGES)  ask for tile t
    leader:    store Q;  for t: FULL(t)  S(t)  softmax  P(t) over t's rotary keys  P_FULL(t)  product  EMPTY(t);  DONE
    follower:  for t: P_FULL(t)  rescale  product  EMPTY(t);  DONE

None waits for ever: tile t + STAGES is asked for once both have used tile t, for which they wait for nothing that comes
after it. P(t) may take the place of t's rotary keys: S(t) has ended in all warps (barrier), and the follower, which
reads it there, arrives on EMPTY(t) before they are overwritten. The same holds for the factors.

What a worker warp group captures costs it registers, hence few, joint allocations: all barriers are one.
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

from .gluon_plan import balanced_counts, balanced_split
from .gluon_tma import async_load
from .masking import apply_mask_by_row
from .softmax import finite_maximum, sink_statistics, soft_cap
from .split_plan import active_splits, split_range, valid_keys

ROWS = gl.constexpr(64)
KEYS = gl.constexpr(64)
HALF = gl.constexpr(256)
ROPE = gl.constexpr(64)
STAGES = gl.constexpr(2)

# Registers of a thread of the follower and of the producer; the leader's take what is left.
FOLLOWER_REGISTERS = gl.constexpr(208)
PRODUCER_REGISTERS = gl.constexpr(24)

# Barriers in their one allocation: the first of each kind, and how many there are.
DONE = gl.constexpr(0)
FULL = gl.constexpr(1)
P_FULL = gl.constexpr(FULL + STAGES)
EMPTY = gl.constexpr(P_FULL + STAGES)
BARRIERS = gl.constexpr(EMPTY + STAGES)


@gluon.jit
def make_barriers():
    bars = gl.allocate_shared_memory(gl.int64, [BARRIERS, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(EMPTY):
        mbarrier.init(bars.index(index), count=1)
    for index in gl.static_range(EMPTY, BARRIERS):
        mbarrier.init(bars.index(index), count=2)
    fence_async_shared()
    return bars


@gluon.jit
def producer(latent_descriptor, rope_descriptor, left, right, rope, bars, sequence, first, step, tiles):
    """Ask for one tile after the other, ``step`` keys apart."""
    stage = 0
    phase = 1
    for tile in range(tiles):
        mbarrier.wait(bars.index(EMPTY + stage), phase)
        key = first + tile * step
        full = bars.index(FULL + stage)
        mbarrier.expect(full, KEYS * (2 * HALF + ROPE) * 2)
        async_load(latent_descriptor, [sequence, key, 0], full, left.index(stage))
        async_load(latent_descriptor, [sequence, key, HALF], full, right.index(stage))
        async_load(rope_descriptor, [sequence, key, 0], full, rope.index(stage))
        stage += 1
        if stage == STAGES:
            stage = 0
            phase ^= 1


@gluon.jit
def store_queries(q_ptr, q_left, q_right, q_rope, first_row, rows, q_len, q_head_stride, q_row_stride,
                  Q_STRIDE_UNIT: gl.constexpr):  # fmt: skip
    """The program's rows of Q from global to shared memory, zeros past ``rows``. All loads before any store."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    rope_layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    starts = ((row // q_len).to(gl.int64) * q_head_stride + (row % q_len) * q_row_stride) * Q_STRIDE_UNIT
    pointers = q_ptr + starts[:, None] + gl.arange(0, HALF, gl.SliceLayout(0, layout))[None, :]
    inside = (row < rows)[:, None]
    rope_row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, rope_layout))
    rope_starts = ((rope_row // q_len).to(gl.int64) * q_head_stride + (rope_row % q_len) * q_row_stride) * Q_STRIDE_UNIT
    columns = 2 * HALF + gl.arange(0, ROPE, gl.SliceLayout(0, rope_layout))
    left = gl.load(pointers, mask=inside, other=0.0)
    right = gl.load(pointers + HALF, mask=inside, other=0.0)
    rope = gl.load(q_ptr + rope_starts[:, None] + columns[None, :], mask=(rope_row < rows)[:, None], other=0.0)
    q_left.store(left)
    q_right.store(right)
    q_rope.store(rope)


@gluon.jit
def clear_stale(values, keys):
    """Zero the rows of a half tile that hold no valid key: P is 0 there, but 0 * NaN is NaN."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    for first in gl.static_range(0, KEYS, 8):
        rows = values.slice(first, 8, 0)
        key = first + gl.arange(0, 8, gl.SliceLayout(1, layout))
        content = rows.load(layout)
        rows.store(gl.where((key < keys)[:, None], content, 0.0))


@gluon.jit
def visible(
    s, mask_ptr, mask_start, mask_row_offsets, mask_key_stride, first, end, clean_first, clean_end, q_len, row_query,
    row_last, score_scale, softcap, MASK: gl.constexpr, MASK_PER_ROW: gl.constexpr, CAUSAL: gl.constexpr,
    CAUSAL_TAIL: gl.constexpr, SCALE_LATER: gl.constexpr, LAYOUT: gl.constexpr,
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
    """One step of the online softmax; as ``online_softmax``, but scores may be not scaled yet, so that scaling and
    subtracting are one instruction."""
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
def store_rows(
    acc, total, target_ptr, first_row, rows, q_len, head_stride, row_stride, column,
    SPLIT: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Write 256 columns of the program's rows: of the output, or of a partial result, whose rows are adjacent."""
    row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    columns = column + gl.arange(0, HALF, gl.SliceLayout(0, LAYOUT))
    if SPLIT:
        starts = row * (2 * HALF)
    else:
        starts = (row // q_len).to(gl.int64) * head_stride + (row % q_len) * row_stride
        acc = acc * (1.0 / gl.where(total == 0.0, 1.0, total))[:, None]
    pointers = target_ptr + starts[:, None] + columns[None, :]
    gl.store(pointers, acc.to(target_ptr.dtype.element_ty), mask=(row < rows)[:, None])


@gluon.jit
def follower(
    right, rope, vectors, bars, target_ptr, first_row, rows, q_len, out_head_stride, out_row_stride, tiles,
    SPLIT: gl.constexpr,
):  # fmt: skip
    """The right half of O: P from shared memory times the right half of the latents."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16])
    acc = gl.zeros([ROWS, HALF], gl.float32, LAYOUT)
    stage = 0
    phase = 0
    for _ in range(tiles):
        mbarrier.wait(bars.index(P_FULL + stage), phase)
        shrink = vectors.index(stage).load(gl.SliceLayout(1, LAYOUT))
        acc = acc * shrink[:, None]
        acc = warpgroup_mma(rope.index(stage), right.index(stage), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        tl.debug_barrier()
        mbarrier.arrive(bars.index(EMPTY + stage), count=1)
        stage += 1
        if stage == STAGES:
            stage = 0
            phase ^= 1
    mbarrier.wait(bars.index(DONE), 0)
    total = vectors.index(STAGES).load(gl.SliceLayout(1, LAYOUT))
    store_rows(
        acc, total, target_ptr, first_row, rows, q_len, out_head_stride, out_row_stride, HALF, SPLIT, LAYOUT
    )  # fmt: skip


@gluon.jit
def leader(
    q_ptr, q_left, q_right, q_rope, left, right, rope, vectors, bars, mask_ptr, sink_ptr, target_ptr, stats_ptr,
    mask_start, slot, score_scale, softcap, first_row, rows, q_len, first, end, step, tiles, clean_first, clean_end,
    takes_sink, q_head_stride, q_row_stride, mask_head_stride, mask_row_stride, mask_key_stride, out_head_stride,
    out_row_stride,
    SPLIT: gl.constexpr, Q_STRIDE_UNIT: gl.constexpr, MASK: gl.constexpr, MASK_PER_ROW: gl.constexpr,
    CAUSAL: gl.constexpr, CAUSAL_TAIL: gl.constexpr, EXP2_SCALE: gl.constexpr, SCALE_LATER: gl.constexpr,
):  # fmt: skip
    """S, the softmax, and the left half of O. ``q_ptr`` and ``target_ptr`` are the sequence's and the split's own;
    ``mask_start`` and ``slot`` say where in the mask and among the statistics these are."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16])
    A_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    store_queries(
        q_ptr, q_left, q_right, q_rope, first_row, rows, q_len, q_head_stride, q_row_stride, Q_STRIDE_UNIT
    )  # fmt: skip
    fence_async_shared()
    tl.debug_barrier()
    row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    row_head = row // q_len
    row_query = row % q_len
    row_last = None
    if CAUSAL_TAIL:
        row_last = row_query + (end - q_len)
    mask_rows = mask_start + row_head.to(gl.int64) * mask_head_stride + row_query * mask_row_stride
    if MASK_PER_ROW:
        mask_rows = gl.where(row < rows, mask_rows, -1)
    maximum = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, LAYOUT))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, LAYOUT))
    if sink_ptr is not None:
        maximum, total = sink_statistics(sink_ptr, row_head, (row < rows) & takes_sink, EXP2_SCALE)
    acc = gl.zeros([ROWS, HALF], gl.float32, O_LAYOUT)
    stage = 0
    phase = 0
    for tile in range(tiles):
        key = first + tile * step
        mbarrier.wait(bars.index(FULL + stage), phase)
        latents = left.index(stage)
        if key + KEYS > end:
            clear_stale(latents, end - key)
            clear_stale(right.index(stage), end - key)
            fence_async_shared()
            tl.debug_barrier()
        s = gl.zeros([ROWS, KEYS], gl.float32, LAYOUT)
        s = warpgroup_mma(q_left, latents.permute((1, 0)), s, use_acc=False, is_async=True)
        s = warpgroup_mma(q_right, right.index(stage).permute((1, 0)), s, is_async=True)
        s = warpgroup_mma(q_rope, rope.index(stage).permute((1, 0)), s, is_async=True)
        s = warpgroup_mma_wait(0, deps=(s,))
        tl.debug_barrier()
        s = visible(
            s, mask_ptr, mask_start, mask_rows, mask_key_stride, key, end, clean_first, clean_end, q_len, row_query,
            row_last, score_scale, softcap, MASK, MASK_PER_ROW, CAUSAL, CAUSAL_TAIL, SCALE_LATER, LAYOUT,
        )  # fmt: skip
        p, maximum, total, shrink = fold(s, maximum, total, score_scale, EXP2_SCALE, SCALE_LATER)
        p = p.to(latents.dtype)
        rope.index(stage).store(p)
        vectors.index(stage).store(shrink)
        fence_async_shared()
        tl.debug_barrier()
        mbarrier.arrive(bars.index(P_FULL + stage), count=1)
        acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, O_LAYOUT))[:, None]
        acc = warpgroup_mma(gl.convert_layout(p, A_LAYOUT), latents, acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        tl.debug_barrier()
        mbarrier.arrive(bars.index(EMPTY + stage), count=1)
        stage += 1
        if stage == STAGES:
            stage = 0
            phase ^= 1
    vectors.index(STAGES).store(total)
    tl.debug_barrier()
    mbarrier.arrive(bars.index(DONE), count=1)
    if SPLIT:
        gl.store(stats_ptr + (slot + row) * 2, maximum, mask=row < rows)
        gl.store(stats_ptr + (slot + row) * 2 + 1, total, mask=row < rows)
    total = gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))
    store_rows(
        acc, total, target_ptr, first_row, rows, q_len, out_head_stride, out_row_stride, 0, SPLIT, O_LAYOUT
    )  # fmt: skip


_RUNTIME_INTEGERS = [
    "q_len", "kv_len", "row_tiles", "bounds_stride",
    "q_batch_stride", "q_head_stride", "q_row_stride",
    "mask_batch_stride", "mask_head_stride", "mask_row_stride", "mask_key_stride",
    "out_batch_stride", "out_head_stride", "out_row_stride",
]  # fmt: skip


@gluon.jit(do_not_specialize=_RUNTIME_INTEGERS)
def latent_producer(
    q_ptr,
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
    mask_batch_stride,
    mask_head_stride,
    mask_row_stride,
    mask_key_stride,
    out_batch_stride,
    out_head_stride,
    out_row_stride,
    HEADS: gl.constexpr,
    SPLIT: gl.constexpr,
    Q_STRIDE_UNIT: gl.constexpr,
    MASK: gl.constexpr,
    MASK_PER_ROW: gl.constexpr,
    CAUSAL: gl.constexpr,
    CAUSAL_TAIL: gl.constexpr,
    PARTITION: gl.constexpr,
    BLOCK_BATCH: gl.constexpr,
    MOST_SPLITS: gl.constexpr,
    LAUNCH_OVERLAP: gl.constexpr,
    EXP2_SCALE: gl.constexpr,
    SCALE_LATER: gl.constexpr,
):
    """Grid (batch * row_tiles, num_splits), launched with 4 warps, which are the leader's.

    Descriptors are of the latents (batch, kv_len, 512) and the rotary keys (batch, kv_len, 64), in tiles of KEYS rows
    and of 256 and 64 columns. SCALE_LATER: ``score_scale`` is positive, and all that is between a product of a query
    and a key and its power of two. Everything else is as in ``latent_decode``.
    """
    flat = gl.program_id(0)
    split = gl.program_id(1)
    num_splits = gl.num_programs(1)
    first_row = flat % row_tiles * ROWS
    sequence = flat // row_tiles

    # As in ``latent_decode``. What is read after it by the other warps they read after this one told them to.
    if LAUNCH_OVERLAP:
        gdc_wait()
        gdc_launch_dependents()

    BALANCED: gl.constexpr = PARTITION == "balanced"
    slot = sequence.to(gl.int64) * num_splits + split
    splits = num_splits
    works = True
    if BALANCED:
        batch = gl.num_programs(0) // row_tiles
        planning: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
        counts, up_to = balanced_counts(
            bounds_ptr, bounds_stride, batch, kv_len, q_len, num_splits, lengths_ptr, KEYS, BLOCK_BATCH, MOST_SPLITS,
            bounds_ptr is not None, CAUSAL, lengths_ptr is not None, planning,
        )  # fmt: skip
        batch_split = (split * gl.num_programs(0) + flat) // row_tiles
        sequence, split, splits = balanced_split(counts, up_to, batch_split, BLOCK_BATCH, planning)
        works = sequence < batch
        sequence = gl.minimum(sequence, batch - 1)
        slot = batch_split.to(gl.int64)
    first_key, end_key, clean_first, clean_end = valid_keys(
        bounds_ptr, bounds_stride, sequence, kv_len, q_len, bounds_ptr is not None, CAUSAL, lengths_ptr,
        lengths_ptr is not None,
    )  # fmt: skip
    first, limit, step = split_range(first_key, end_key, kv_len, split, splits, KEYS, PARTITION)
    if not BALANCED:
        # Split 0 goes on even with no keys: it must write the zeros of rows that see nothing.
        works = split < gl.maximum(active_splits(first_key, end_key, kv_len, num_splits, KEYS, PARTITION), 1)
    if works:
        tiles = (gl.maximum(limit - first, 0) + step - 1) // step
        rows = HEADS * q_len
        sequence_wide = sequence.to(gl.int64)
        own_q_ptr = q_ptr + sequence_wide * q_batch_stride * Q_STRIDE_UNIT
        slot *= rows
        if SPLIT:
            target_ptr = partial_ptr + slot * (2 * HALF)
        else:
            target_ptr = out_ptr + sequence_wide * out_batch_stride
        dtype: gl.constexpr = latent_descriptor.dtype
        tile_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
        q_left = gl.allocate_shared_memory(dtype, [ROWS, HALF], tile_layout)
        q_right = gl.allocate_shared_memory(dtype, [ROWS, HALF], tile_layout)
        q_rope = gl.allocate_shared_memory(dtype, [ROWS, ROPE], tile_layout)
        left = gl.allocate_shared_memory(dtype, [STAGES, KEYS, HALF], tile_layout)
        right = gl.allocate_shared_memory(dtype, [STAGES, KEYS, HALF], tile_layout)
        rope = gl.allocate_shared_memory(dtype, [STAGES, KEYS, ROPE], tile_layout)
        vectors = gl.allocate_shared_memory(gl.float32, [STAGES + 1, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
        bars = make_barriers()
        gl.warp_specialize(
            [
                (leader, (
                    own_q_ptr, q_left, q_right, q_rope, left, right, rope, vectors, bars, mask_ptr, sink_ptr,
                    target_ptr, stats_ptr, sequence_wide * mask_batch_stride, slot, score_scale, softcap, first_row,
                    rows, q_len, first, end_key, step, tiles, clean_first, clean_end, split == 0, q_head_stride,
                    q_row_stride, mask_head_stride, mask_row_stride, mask_key_stride, out_head_stride, out_row_stride,
                    SPLIT, Q_STRIDE_UNIT, MASK,
                    MASK_PER_ROW, CAUSAL, CAUSAL_TAIL, EXP2_SCALE, SCALE_LATER,
                )),
                (follower, (
                    right, rope, vectors, bars, target_ptr, first_row, rows, q_len, out_head_stride, out_row_stride,
                    tiles, SPLIT,
                )),
                (producer, (
                    latent_descriptor, rope_descriptor, left, right, rope, bars, sequence, first, step, tiles,
                )),
            ],
            [4, 1],
            [FOLLOWER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
