"""Applying a mask to a tile of scores, with query rows on either axis of it."""

import triton
import triton.language as tl

from .softmax import along_keys


@triton.jit
def mask_scores(
    scores,
    mask_ptr,
    mask_row_offsets,
    mask_key_stride,
    keys,
    needed,
    ADDITIVE: tl.constexpr,
    PER_ROW: tl.constexpr,
    KEYS_AXIS: tl.constexpr,
):
    """Hide (bool) or shift (additive) scores. ``needed`` (BLOCK_KV,) is False where the mask is known to hide nothing,
    so that nothing is loaded there. A mask equal for all rows is loaded once per key; rows that do not exist have a
    negative offset."""
    key_offsets = tl.expand_dims(keys.to(tl.int64) * mask_key_stride, 1 - KEYS_AXIS)
    wanted = tl.expand_dims(needed, 1 - KEYS_AXIS)
    if PER_ROW:
        pointers = mask_ptr + along_keys(mask_row_offsets, KEYS_AXIS) + key_offsets
        wanted = wanted & (along_keys(mask_row_offsets, KEYS_AXIS) >= 0)
    else:
        pointers = mask_ptr + key_offsets
    if ADDITIVE:
        scores += tl.load(pointers, mask=wanted, other=0.0).to(tl.float32)
    else:
        scores = tl.where(tl.load(pointers, mask=wanted, other=1) != 0, scores, float("-inf"))
    return scores
