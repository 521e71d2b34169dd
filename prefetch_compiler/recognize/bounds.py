"""Which keys a mask lets anyone see, computed from the mask itself on the device.

Nothing about a mask has to be proved: whatever built it, the bounds follow from its values, and one computation
serves every layer that uses the same mask. Plain torch, so that Inductor fuses it with whatever built the mask.
"""

from __future__ import annotations

import torch


def _hidden(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask gives a key weight exactly 0 next to the best key of its row.

    True for False and -inf. A finite value hides a key when it lies more than half its dtype's range below the row's
    largest value (the masked_fill(finfo.min) spelling): exp of that difference is 0 in any arithmetic. A row whose
    values are all equally low hides nothing: softmax makes it a plain average, and so must we.
    """
    if mask.dtype == torch.bool:
        return ~mask
    half_range = torch.finfo(mask.dtype).max / 2
    best = mask.amax(-1, keepdim=True)
    return (mask == float("-inf")) | (mask < best - half_range)


def mask_bounds(mask: torch.Tensor, kv_len: int) -> torch.Tensor:
    """Bounds of what may be seen, per sequence.

    Args:
        mask: (1|B, 1|H, 1|q_len, 1|kv_len), bool (True: may attend) or additive float.
        kv_len: number of keys, to which a last dimension of 1 is broadcast.

    Returns:
        int32 (1|B, 4): first key that any query of any head may see; one past the last; and [start, end) of a range
        inside it in which the mask does nothing at all (bool: all True; additive: all 0), for every query and head.
        A mask that hides everything gives first == end.
    """
    hidden = _hidden(mask)
    active = hidden if mask.dtype == torch.bool else mask != 0
    seen = (~hidden).any(2).any(1)
    dirty = active.any(2).any(1)
    seen = seen.expand(seen.shape[0], kv_len)
    dirty = dirty.expand(dirty.shape[0], kv_len)

    # int64 until the end: with a symbolic length, Inductor computes the other operand of ``where`` in int64 and its
    # reductions in the result's type, and the two must agree.
    keys = torch.arange(kv_len, device=mask.device)
    first = torch.where(seen, keys, kv_len).amin(1)
    end = torch.where(seen, keys + 1, 0).amax(1)
    first = torch.minimum(first, end)
    # The clean range holds the middle key, so a few dirty keys at either edge (causal tails, windows) stay outside.
    middle = ((first + end) // 2)[:, None]
    clean_first = torch.where(dirty & (keys < middle), keys + 1, 0).amax(1)
    clean_end = torch.where(dirty & (keys >= middle), keys, kv_len).amin(1)
    clean_first = torch.maximum(clean_first, first)
    clean_end = torch.maximum(torch.minimum(clean_end, end), clean_first)
    return torch.stack((first, end, clean_first, clean_end), 1).to(torch.int32)


def length_bounds(lengths: torch.Tensor, kv_len: int) -> torch.Tensor:
    """Bounds of sequences that hold their first ``lengths`` keys, of which no mask hides any: int32 (B, 4).

    Args:
        lengths: int32 or int64 (B,), on the device; what lies outside [0, kv_len] counts as the nearer of the two.
    """
    end = lengths.clamp(0, kv_len).to(torch.int32)
    first = torch.zeros_like(end)
    return torch.stack((first, end, first, end), 1)
