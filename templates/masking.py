"""Applying a mask to a tile of scores, with query rows on either axis of it."""

import triton
import triton.language as tl

from .softmax import along_keys


@triton.jit
def key_bias(mask_ptr, mask_key_stride, keys, needed, wanted, ADDITIVE: tl.constexpr):
    """What a mask that is equal for all rows adds to their scores, (BLOCK_KV,) fp32. Loaded only if ``wanted``, and
    there where ``needed``; elsewhere it is known to hide nothing. Hidden keys get -inf added, as SDPA's math does."""
    bias = tl.zeros(keys.shape, tl.float32)
    if wanted:
        pointers = mask_ptr + keys.to(tl.int64) * mask_key_stride
        if ADDITIVE:
            bias = tl.load(pointers, mask=needed, other=0.0).to(tl.float32)
        else:
            bias = tl.where(tl.load(pointers, mask=needed, other=1) != 0, 0.0, float("-inf"))
    return bias


@triton.jit
def apply_mask_by_row(
    scores, mask_ptr, mask_row_offsets, mask_key_stride, keys, needed, ADDITIVE: tl.constexpr, KEYS_AXIS: tl.constexpr
):
    """Hide (bool) or shift (additive) scores by a mask that differs by row. ``needed`` (BLOCK_KV,) is False where it is
    known to hide nothing, so that nothing is loaded there."""
    rows = along_keys(mask_row_offsets, KEYS_AXIS)
    pointers = mask_ptr + rows + tl.expand_dims(keys.to(tl.int64) * mask_key_stride, 1 - KEYS_AXIS)
    wanted = tl.expand_dims(needed, 1 - KEYS_AXIS) & (rows >= 0)
    if ADDITIVE:
        scores += tl.load(pointers, mask=wanted, other=0.0).to(tl.float32)
    else:
        scores = tl.where(tl.load(pointers, mask=wanted, other=1) != 0, scores, float("-inf"))
    return scores
