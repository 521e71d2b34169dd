"""``decode_attention``: what a model calls in place of SDPA where it needs more than SDPA returns, or takes.

No graph is searched for it: the call is the site. It is one operator to torch.compile, with any backend and with
``fullgraph=True``, and to a CUDA graph.
"""

from __future__ import annotations

from torch import Tensor

from .lower.call import PLAIN, AttentionCall
from .lower.call_op import attend, attend_with_lse
from .options import DEFAULT_DECODE_OPTIONS, DecodeOptions


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    bounds: Tensor | None = None,
    lengths: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    return_lse: bool = False,
    options: DecodeOptions = DEFAULT_DECODE_OPTIONS,
) -> Tensor | tuple[Tensor, Tensor]:
    """``softmax(cap(query @ key^T * scale) + attn_mask) @ value``, and the log-sum-exp of the scores.

    Args:
        query: (batch, query_heads, q_len, head_dim), float16, bfloat16 or float32; few queries (decoding, no prompt).
        key: (batch, kv_heads, kv_len, head_dim) in the query's dtype; query head ``h`` reads KV head
            ``h // (query_heads // kv_heads)``.
        value: (batch, kv_heads, kv_len, value_dim), of the same dtype.
        attn_mask: as in SDPA: bool (True: may attend) or additive, broadcastable to (batch, query_heads, q_len,
            kv_len). What lies beyond the last visible key or before the first is not read, and may be anything.
        bounds: ``mask_bounds`` of the mask, where it is at hand: layers that share a mask can share it.
        lengths: in place of a mask, int32 or int64 (batch,): the first keys of each sequence, which count. What lies
            beyond is not read, and may be anything.
        is_causal: query ``i`` sees keys ``0..i``, as in SDPA; not with a mask. With ``lengths`` the last ``q_len`` keys
            of a sequence are those of its queries: query ``i`` sees keys 0 to ``length - q_len + i``.
        scale: 1 / sqrt(head_dim) by default.
        softcap: cap(x) is ``softcap * tanh(x / softcap)``, as in Gemma 2, or x where it is None.
        sink: (query_heads,), floating-point: a logit of each head that takes its share of the softmax and no value, as
            in gpt-oss.
        return_lse: return the natural log-sum-exp of each row's scores too, to merge results over parts of a cache.
        options: ``strict`` raises where no kernel serves the call, instead of leaving it to SDPA.

    Returns:
        (batch, query_heads, q_len, value_dim), contiguous, in the dtype of ``query``. Rows that see no key are 0. With
        ``return_lse`` also float32 (batch, query_heads, q_len): -inf where there is neither a key to see nor a sink.

    Raises:
        InvalidAttentionInputError: operands that do not fit one another. While Dynamo traces, its own error has this
            one's text.
        SiteNotLoweredError, KernelLaunchError, DatabaseError: under ``options.strict``.
    """
    mask = None if attn_mask is None else attn_mask[(None,) * (4 - attn_mask.ndim)]
    if scale is None:
        scale = query.shape[-1] ** -0.5
    call = AttentionCall(
        query, key, value, None, None, mask, bounds, lengths, None, sink, is_causal, scale, softcap, PLAIN
    )
    return attend_with_lse(call, options) if return_lse else attend(call, options)
