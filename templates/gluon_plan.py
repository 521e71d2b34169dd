"""Balanced splits as ``split_plan`` plans them, in Gluon, where every tensor has a layout from the start."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def add(one, other):
    return one + other


@gluon.jit
def balanced_counts(
    bounds_ptr, bounds_stride, batch, kv_len, q_len, num_splits, lengths_ptr, BLOCK_KV: gl.constexpr,
    BLOCK_BATCH: gl.constexpr, MOST_SPLITS: gl.constexpr, HAS_BOUNDS: gl.constexpr, CAUSAL: gl.constexpr,
    HAS_LENGTHS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """As ``split_plan.balanced_counts``, the same to the last split: the merge counts there."""
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
    tiles = gl.where(inside, gl.maximum(end - first + BLOCK_KV - 1, 0) // BLOCK_KV, 0)
    full_splits = gl.maximum(batch * (num_splits - 1), 1)
    tiles_each = gl.maximum((gl.sum(tiles, 0) + full_splits - 1) // full_splits, 1)
    counts = gl.minimum(gl.maximum((tiles + tiles_each - 1) // tiles_each, 1), MOST_SPLITS)
    counts = gl.where(inside, counts, 0)
    return counts, gl.associative_scan(counts, 0, add)


@gluon.jit
def balanced_split(counts, up_to, slot, BLOCK_BATCH: gl.constexpr, LAYOUT: gl.constexpr):
    """As ``split_plan.balanced_split``."""
    sequence = gl.sum((up_to <= slot).to(gl.int32), 0)
    own = gl.arange(0, BLOCK_BATCH, LAYOUT) == sequence
    count = gl.sum(gl.where(own, counts, 0), 0)
    split = slot - gl.sum(gl.where(own, up_to, 0), 0) + count
    return uniform(sequence), uniform(split), uniform(gl.maximum(count, 1))


@gluon.jit
def uniform(number):
    """``number``, int32, which is the same in all threads: what follows from the result takes uniform registers, as
    what follows from program ids does, and branches on it do not part a warp."""
    return gl.inline_asm_elementwise(
        "redux.sync.max.s32 $0, $1, 0xffffffff;", "=r,r", [number], dtype=gl.int32, is_pure=True, pack=1
    )
