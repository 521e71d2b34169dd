"""``quantised_decode_attention``: what a model that keeps its cache quantised calls in place of SDPA.

No graph is searched for it: the call is the site. It is one operator to torch.compile, with any backend and with
``fullgraph=True``, and to a CUDA graph.
"""

from __future__ import annotations

from torch import Tensor

from .lower.call import QUANTISED, AttentionCall, narrowed, zeros_of
from .lower.call_op import attend, attend_with_lse
from .options import DEFAULT_DECODE_OPTIONS, DecodeOptions


def quantised_decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    attn_mask: Tensor | None = None,
    *,
    key_zero: Tensor | None = None,
    value_zero: Tensor | None = None,
    key_minimum: Tensor | None = None,
    value_minimum: Tensor | None = None,
    packing: str | None = None,
    bounds: Tensor | None = None,
    lengths: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    return_lse: bool = False,
    options: DecodeOptions = DEFAULT_DECODE_OPTIONS,
) -> Tensor | tuple[Tensor, Tensor]:
    """``softmax(cap(query @ (key * key_scale)^T * scale) + attn_mask) @ (value * value_scale)``, K and V read as they
    are.

    Args:
        query: (batch, query_heads, q_len, head_dim), float16 or bfloat16; few queries (decoding, not a prompt).
        key: (batch, kv_heads, kv_len, head_dim) in float8_e4m3fn, float8_e5m2, int8 or uint8; query head ``h`` reads KV
            head ``h // (query_heads // kv_heads)``.
        value: (batch, kv_heads, kv_len, value_dim), of the same dtype.
        key_scale, value_scale: what stored numbers are to be multiplied by, floating-point: of shape () for all, or
            (1|batch, 1|kv_heads, 1|kv_len): for each head, or for each token of each head; or (1|batch, 1|kv_heads,
            rows, columns): for groups of adjacent tokens and columns, as many as there are of each. None is 1.
        key_zero, value_zero: what is subtracted from stored numbers before they are multiplied, ``(key - key_zero) *
            key_scale``: of a shape that a scale may have, floating-point or of int8, uint8, int16 or int32.
        key_minimum, value_minimum: what is added to multiplied ones instead, ``key * key_scale + key_minimum``.
        packing: of numbers of four bits, two a byte of uint8 or int8, head_dim / 2 and value_dim / 2 bytes a row:
            ``uint4_interleaved`` or ``int4_interleaved`` (byte i has column 2i in its low half, 2i + 1 in its high
            one), ``uint4_halves`` or ``int4_halves`` (low halves are the first half of the columns, high ones the
            second); int4 is two's complement.
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
        options: ``strict`` raises where no kernel serves the call, instead of dequantising for SDPA.

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
    zeros = zeros_of(
        QUANTISED, narrowed(key_zero, key), narrowed(value_zero, value), narrowed(key_minimum, key),
        narrowed(value_minimum, value), packing,
    )  # fmt: skip
    call = AttentionCall(
        query, key, value, narrowed(key_scale, key), narrowed(value_scale, value), mask, bounds, lengths, None, sink,
        is_causal, scale, softcap, QUANTISED, *zeros,
    )  # fmt: skip
    return attend_with_lse(call, options) if return_lse else attend(call, options)
