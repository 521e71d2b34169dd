"""How the valid keys of one sequence are divided among splits: computed alike by the decode and the merge kernels."""

import triton
import triton.language as tl


@triton.jit
def valid_keys(bounds_ptr, bounds_stride, sequence, kv_len, q_len, HAS_BOUNDS: tl.constexpr, CAUSAL: tl.constexpr):
    """The keys [first, end) that any query of ``sequence`` may see, and [clean_first, clean_end) within it, where the
    mask hides nothing. ``bounds`` is int32 (1|batch, 4); without it all keys are valid and none is known to be clean.
    A causal mask is aligned top-left, as in SDPA: query i sees keys 0..i."""
    if HAS_BOUNDS:
        row = bounds_ptr + sequence * bounds_stride
        first = tl.maximum(tl.load(row), 0)
        end = tl.minimum(tl.load(row + 1), kv_len)
        clean_first = tl.load(row + 2)
        clean_end = tl.load(row + 3)
    else:
        first = kv_len * 0
        end = kv_len
        clean_first = first
        clean_end = first
    if CAUSAL:
        end = tl.minimum(end, q_len)
    return first, end, clean_first, clean_end


@triton.jit
def keys_per_split(first, end, num_splits, BLOCK_KV: tl.constexpr):
    """Keys given to each split, in whole tiles, and how many splits get any. Both are 0 when nothing is valid."""
    tiles = tl.maximum(end - first + BLOCK_KV - 1, 0) // BLOCK_KV
    tiles_each = (tiles + num_splits - 1) // num_splits
    active = (tiles + tiles_each - 1) // tl.maximum(tiles_each, 1)
    return tiles_each * BLOCK_KV, active
