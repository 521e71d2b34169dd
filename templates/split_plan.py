"""How the valid keys of each sequence are divided among splits: computed alike by the decode and the merge kernels.

PARTITION says how, always in whole tiles:

even      every sequence has ``num_splits`` splits, of equal adjacent ranges
strided   the same, but the splits of a sequence take its tiles in turn: they all start in the same few pages, and their
          numbers of tiles differ by one at most
chunked   a split is so many keys, whatever a sequence holds: with that number fixed, what is added up in which order
          depends on neither batch nor length
balanced  the batch's tiles are divided by the batch's splits, and a sequence has as many splits as its length asks for:
          ragged batches keep all SMs busy. Planned by every program for itself, from the bounds of all sequences.
streamed  the tiles of all sequences stand in one row, and each program takes an equal part of it: no program has more
          to read than another, and one that comes to a sequence's end goes on with the next (Stream-K,
          https://arxiv.org/abs/2301.03598). Sequences that lie within one program are never merged.
"""

import triton
import triton.language as tl


@triton.jit
def valid_keys(
    bounds_ptr, bounds_stride, sequence, kv_len, q_len, HAS_BOUNDS: tl.constexpr, CAUSAL: tl.constexpr, lengths_ptr,
    HAS_LENGTHS: tl.constexpr, VOLATILE: tl.constexpr = False,
):  # fmt: skip
    """The keys [first, end) that any query of ``sequence`` may see, and [clean_first, clean_end) within it, where the
    mask hides nothing. ``bounds`` is int32 (1|batch, 4). In its place ``lengths`` (batch,) may say how many keys there
    are; what lies outside of the capacity counts as the nearest that does not. Without either all keys are valid.
    A causal mask is aligned top-left, as in SDPA: query i sees keys 0..i. VOLATILE loads stay behind volatile ones."""
    if HAS_BOUNDS:
        row = bounds_ptr + sequence * bounds_stride
        first = tl.maximum(tl.load(row, volatile=VOLATILE), 0)
        end = tl.minimum(tl.load(row + 1, volatile=VOLATILE), kv_len)
        clean_first = tl.load(row + 2)
        clean_end = tl.load(row + 3)
    elif HAS_LENGTHS:
        first = kv_len * 0
        end = tl.minimum(tl.maximum(tl.load(lengths_ptr + sequence, volatile=VOLATILE), 0), kv_len).to(tl.int32)
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
def tiles_of_sequences(
    bounds_ptr, bounds_stride, sequence, inside, kv_len, q_len, BLOCK_KV: tl.constexpr, HAS_BOUNDS: tl.constexpr,
    CAUSAL: tl.constexpr, lengths_ptr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """Tiles of valid keys of each ``sequence`` of a vector that is ``inside`` the batch; 0 of the others."""
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
    return tl.where(inside, tl.maximum(end - first + BLOCK_KV - 1, 0) // BLOCK_KV, 0)


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
    tiles = tiles_of_sequences(
        bounds_ptr, bounds_stride, sequence, inside, kv_len, q_len, BLOCK_KV, HAS_BOUNDS, CAUSAL, lengths_ptr,
        HAS_LENGTHS,
    )  # fmt: skip
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


@triton.jit
def stream_of_tiles(
    bounds_ptr, bounds_stride, batch, kv_len, q_len, programs, BLOCK_KV: tl.constexpr, BLOCK_BATCH: tl.constexpr,
    HAS_BOUNDS: tl.constexpr, CAUSAL: tl.constexpr, lengths_ptr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """(BLOCK_BATCH,) tiles of each sequence in the row that ``programs`` divide, how many there are up to and including
    each, and how many a program takes. A sequence without keys has one, for a program to write its zeros.

    Sequences of one length are divided into whole parts, or taken whole, where that leaves no program with more than a
    sixteenth above its share: then none goes on from one to the next, and fewer results are merged, or none.
    """
    sequence = tl.arange(0, BLOCK_BATCH)
    inside = sequence < batch
    tiles = tiles_of_sequences(
        bounds_ptr, bounds_stride, sequence, inside, kv_len, q_len, BLOCK_KV, HAS_BOUNDS, CAUSAL, lengths_ptr,
        HAS_LENGTHS,
    )  # fmt: skip
    tiles = tl.where(inside, tl.maximum(tiles, 1), 0)
    total = tl.sum(tiles, 0)
    longest = tl.max(tiles, 0)
    each = (total + programs - 1) // programs
    parts = tl.maximum(longest // each, 1)
    whole = (each + longest - 1) // longest
    aligned = (longest * whole + parts - 1) // parts
    aligns = (total == longest * batch) & (aligned * 16 <= each * 17)
    return tiles, tl.cumsum(tiles, 0), tl.where(aligns, aligned, each)


@triton.jit
def stream_sequences(up_to, begin, end):
    """The sequences [first, last] that the tiles [begin, end) of the row are of; none where there is no such tile."""
    return tl.sum((up_to <= begin).to(tl.int32), 0), tl.sum((up_to < end).to(tl.int32), 0)


@triton.jit
def stream_place(tiles, up_to, each, sequence, BLOCK_BATCH: tl.constexpr):
    """Where the tiles of ``sequence`` begin in the row and how many they are, and the first and the last program that
    has some of them."""
    own = tl.arange(0, BLOCK_BATCH) == sequence
    count = tl.sum(tl.where(own, tiles, 0), 0)
    start = tl.sum(tl.where(own, up_to, 0), 0) - count
    return start, count, start // each, (start + count - 1) // each


@triton.jit
def stream_slot(kv_head, batch, programs, program, sequence):
    """Where the partial result of ``program`` for ``sequence`` lies. Along the row both grow, one of them at least from
    each part to the next: so every part has a slot of its own, and those of a sequence are adjacent."""
    return kv_head.to(tl.int64) * (batch + programs) + program + sequence
