"""How the valid keys of each sequence are divided among splits: computed alike by the decode and the merge kernels.

PARTITION says how, always in whole tiles:

even      every sequence has ``num_splits`` splits, of equal adjacent ranges
strided   the same, but the splits of a sequence take its tiles in turn: they all start in the same few pages, and their
          numbers of tiles differ by one at most
chunked   a split is so many keys, whatever a sequence holds: with that number fixed, what is added up in which order
          depends on neither batch nor length
balanced  the batch's tiles are divided by the batch's splits, and a sequence has as many splits as its length asks for:
          ragged batches keep all SMs busy. Planned by every program for itself, from the bounds of all sequences.
"""

import triton
import triton.language as tl


@triton.jit
def valid_keys(
    bounds_ptr, bounds_stride, sequence, kv_len, q_len, HAS_BOUNDS: tl.constexpr, CAUSAL: tl.constexpr, lengths_ptr,
    HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """The keys [first, end) that any query of ``sequence`` may see, and [clean_first, clean_end) within it, where the
    mask hides nothing. ``bounds`` is int32 (1|batch, 4). In its place ``lengths`` (batch,) may say how many keys there
    are; what lies outside of the capacity counts as the nearest that does not. Without either all keys are valid.
    A causal mask is aligned top-left, as in SDPA: query i sees keys 0..i."""
    if HAS_BOUNDS:
        row = bounds_ptr + sequence * bounds_stride
        first = tl.maximum(tl.load(row), 0)
        end = tl.minimum(tl.load(row + 1), kv_len)
        clean_first = tl.load(row + 2)
        clean_end = tl.load(row + 3)
    elif HAS_LENGTHS:
        first = kv_len * 0
        end = tl.minimum(tl.maximum(tl.load(lengths_ptr + sequence), 0), kv_len).to(tl.int32)
        clean_first = first
        clean_end = end
    else:
        first = kv_len * 0
        end = kv_len
        clean_first = first
        clean_end = first
    if CAUSAL:
        end = tl.minimum(end, q_len)
    return first, end, clean_first, clean_end


@triton.jit
def chunk_keys(kv_len, num_splits, BLOCK_KV: tl.constexpr):
    """Keys of a chunk: the capacity in ``num_splits`` equal parts of whole tiles."""
    tiles = (kv_len + BLOCK_KV - 1) // BLOCK_KV
    return (tiles + num_splits - 1) // num_splits * BLOCK_KV


@triton.jit
def active_splits(first, end, kv_len, num_splits, BLOCK_KV: tl.constexpr, PARTITION: tl.constexpr):
    """How many splits of a sequence, the first ones, get any keys; 0 when nothing is valid. Not for balanced ones."""
    tiles = tl.maximum(end - first + BLOCK_KV - 1, 0) // BLOCK_KV
    if PARTITION == "strided":
        active = tl.minimum(tiles, num_splits)
    elif PARTITION == "chunked":
        chunk = chunk_keys(kv_len, num_splits, BLOCK_KV)
        active = (tiles * BLOCK_KV + chunk - 1) // tl.maximum(chunk, 1)
    else:
        tiles_each = (tiles + num_splits - 1) // num_splits
        active = (tiles + tiles_each - 1) // tl.maximum(tiles_each, 1)
    return active


@triton.jit
def split_range(first, end, kv_len, split, num_splits, BLOCK_KV: tl.constexpr, PARTITION: tl.constexpr):
    """The tiles of one of ``num_splits`` splits: they start at ``begin``, ``step`` keys apart, below ``limit``. All
    tiles of a sequence lie BLOCK_KV apart from ``first`` on."""
    if PARTITION == "strided":
        begin = first + split * BLOCK_KV
        limit = end
        step = num_splits * BLOCK_KV
    else:
        if PARTITION == "chunked":
            share = chunk_keys(kv_len, num_splits, BLOCK_KV)
        else:
            tiles = tl.maximum(end - first + BLOCK_KV - 1, 0) // BLOCK_KV
            share = (tiles + num_splits - 1) // num_splits * BLOCK_KV
        begin = first + split * share
        limit = tl.minimum(begin + share, end)
        step = num_splits * 0 + BLOCK_KV
    return begin, limit, step


@triton.jit
def guessed_begin(kv_len, split, num_splits, BLOCK_KV: tl.constexpr, PARTITION: tl.constexpr):
    """Where a split begins if its sequence's first valid key is key 0 and the cache is full: known before the bounds
    are. Right for strided and chunked ones whatever the cache holds."""
    if PARTITION == "strided":
        begin = split * BLOCK_KV
    else:
        begin = split * chunk_keys(kv_len, num_splits, BLOCK_KV)
    return begin


@triton.jit
def balanced_counts(
    bounds_ptr,
    bounds_stride,
    batch,
    kv_len,
    q_len,
    num_splits,
    BLOCK_KV: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    HAS_BOUNDS: tl.constexpr,
    CAUSAL: tl.constexpr,
    lengths_ptr,
    HAS_LENGTHS: tl.constexpr,
):
    """(BLOCK_BATCH,) splits of each sequence, from 1 to MOST_SPLITS, and how many there are up to and including each.

    A full split has as many tiles as batch * (num_splits - 1) splits of all tiles would have, rounded up. Each sequence
    adds at most one that is not full, so all fit in batch * num_splits.
    """
    sequence = tl.arange(0, BLOCK_BATCH)
    inside = sequence < batch
    if HAS_BOUNDS:
        row = bounds_ptr + sequence * bounds_stride
        first = tl.maximum(tl.load(row, mask=inside, other=0), 0)
        end = tl.minimum(tl.load(row + 1, mask=inside, other=0), kv_len)
    elif HAS_LENGTHS:
        first = sequence * 0
        lengths = tl.load(lengths_ptr + sequence, mask=inside, other=0)
        end = tl.minimum(tl.maximum(lengths, 0), kv_len).to(tl.int32)
    else:
        first = sequence * 0
        end = sequence * 0 + kv_len
    if CAUSAL:
        end = tl.minimum(end, q_len)
    tiles = tl.where(inside, tl.maximum(end - first + BLOCK_KV - 1, 0) // BLOCK_KV, 0)
    full_splits = tl.maximum(batch * (num_splits - 1), 1)
    tiles_each = tl.maximum((tl.sum(tiles, 0) + full_splits - 1) // full_splits, 1)
    counts = tl.minimum(tl.maximum((tiles + tiles_each - 1) // tiles_each, 1), MOST_SPLITS)
    counts = tl.where(inside, counts, 0)
    return counts, tl.cumsum(counts, 0)


@triton.jit
def balanced_split(counts, up_to, slot, BLOCK_BATCH: tl.constexpr):
    """The sequence of split ``slot`` of the batch (at least the batch size where there is none), its number among the
    splits of that sequence, and how many that sequence has, at least 1."""
    sequence = tl.sum((up_to <= slot).to(tl.int32), 0)
    own = tl.arange(0, BLOCK_BATCH) == sequence
    count = tl.sum(tl.where(own, counts, 0), 0)
    return sequence, slot - tl.sum(tl.where(own, up_to, 0), 0) + count, tl.maximum(count, 1)


@triton.jit
def balanced_slots(counts, up_to, sequence, BLOCK_BATCH: tl.constexpr):
    """The first split of ``sequence`` among those of the batch, and how many it has."""
    own = tl.arange(0, BLOCK_BATCH) == sequence
    count = tl.sum(tl.where(own, counts, 0), 0)
    return tl.sum(tl.where(own, up_to, 0), 0) - count, count
