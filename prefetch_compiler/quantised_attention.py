"""``quantised_decode_attention``: what a model that keeps its cache quantised calls in place of SDPA.

No graph is searched for it: the call is the site. It is one operator to torch.compile, with any backend and with
``fullgraph=True``, and to a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .lower.quantised_arguments import check_arguments
from .lower.quantised_ops import QUANTISED_DECODE_ATTENTION
from .recognize.bounds import mask_bounds


def quantised_decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    attn_mask: Tensor | None = None,
    *,
    bounds: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    strict: bool = False,
    deterministic: bool = False,
) -> Tensor:
    """``softmax(query @ (key * key_scale)^T * scale + attn_mask) @ (value * value_scale)``, K and V read as they are.

    Args:
        query: (batch, query_heads, q_len, head_dim), float16 or bfloat16; few queries (decoding, not a prompt).
        key: (batch, kv_heads, kv_len, head_dim) in float8_e4m3fn, float8_e5m2 or int8; query head ``h`` reads KV head
            ``h // (query_heads // kv_heads)``.
        value: (batch, kv_heads, kv_len, value_dim), of the same dtype.
        key_scale, value_scale: what stored numbers are to be multiplied by, floating-point: of shape () for all, or
            (1|batch, 1|kv_heads, 1|kv_len): for each head, or for each token of each head. None is 1.
        attn_mask: as in SDPA: bool (True: may attend) or additive, broadcastable to (batch, query_heads, q_len,
            kv_len). What lies beyond the last visible key or before the first is not read, and may be anything.
        bounds: ``mask_bounds`` of the mask, where it is at hand: layers that share a mask can share it. Without a mask
            it says which keys there are.
        is_causal: query ``i`` sees keys ``0..i``, as in SDPA; not with a mask.
        scale: 1 / sqrt(head_dim) by default.
        strict: raise where no kernel serves the call, instead of dequantising for SDPA.
        deterministic: a sequence's result has the same bits in every batch, as with the option
            ``kvprefetch.deterministic``; where SDPA serves, it promises nothing.

    Returns:
        (batch, query_heads, q_len, value_dim), contiguous, in the dtype of ``query``. Rows that see no key are 0.

    Raises:
        InvalidQuantisedAttentionError: arguments that do not fit one another.
        SiteNotLoweredError, KernelLaunchError: under ``strict``.
    """
    # Traced, an exception is lost: then the operator's own check finds what is wrong.
    if not torch.compiler.is_compiling():
        check_arguments(query, key, value, key_scale, value_scale, attn_mask, bounds, is_causal)
    mask = None if attn_mask is None else attn_mask[(None,) * (4 - attn_mask.ndim)]
    if bounds is None and mask is not None:
        bounds = mask_bounds(mask, key.shape[2])
    if scale is None:
        scale = query.shape[3] ** -0.5
    return QUANTISED_DECODE_ATTENTION(  # type: ignore[no-any-return]
        query, key, value, key_scale, value_scale, mask, bounds, is_causal, scale, strict, deterministic
    )
