"""``paged_decode_attention``: what a model that keeps its cache in pages calls in place of SDPA.

No graph is searched for it: the call is the site. It is one operator to torch.compile, with any backend and with
``fullgraph=True``, and to a CUDA graph.
"""

from __future__ import annotations

from torch import Tensor

from .lower.call import PAGED, AttentionCall, zeros_of
from .lower.call_op import attend, attend_with_lse
from .options import DEFAULT_DECODE_OPTIONS, DecodeOptions


def paged_decode_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    *,
    key_zero: Tensor | None = None,
    value_zero: Tensor | None = None,
    key_minimum: Tensor | None = None,
    value_minimum: Tensor | None = None,
    packing: str | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    return_lse: bool = False,
    options: DecodeOptions = DEFAULT_DECODE_OPTIONS,
) -> Tensor | tuple[Tensor, Tensor]:
    """``softmax(cap(query @ key^T * scale)) @ value`` over the first ``lengths`` keys of each sequence.

    Nothing waits for the device, so CUDA graphs can hold the call, once it has run with the same shapes before. No
    gradients.

    Args:
        query: (batch, query_heads, q_len, head_dim), float16, bfloat16 or float32, its last stride 1.
        key_pages: (pages, kv_heads, page_size, head_dim) in any memory order whose last stride is 1; of a pool that is
            stored as (pages, page_size, kv_heads, head_dim) pass ``pool.transpose(1, 2)``. Pages of 1 to 256 keys, a
            power of two. Query head ``h`` reads KV head ``h // (query_heads // kv_heads)``. In the query's dtype, or
            quantised: float8_e4m3fn, float8_e5m2, int8 or uint8.
        value_pages: (pages, kv_heads, page_size, value_dim), likewise, of the same dtype.
        block_table: int32 (batch, max_pages), its last stride 1: the pages of each sequence, in the order of its keys.
            Entries of pages beyond a sequence's length may be anything; the others must be pages of the pools.
        lengths: int32 or int64 (batch,): keys that each sequence holds, those of this step among them. Lengths outside
            of what a row of the table can hold count as none, or as all of it. A sequence of length 0 gets zeros.
        key_scale, value_scale: what the numbers of a quantised cache are to be multiplied by, floating-point: of shape
            () for all, (1, 1|kv_heads, 1) for each head, or (pages, 1|kv_heads, page_size) for each token. None is 1.
        key_zero, value_zero, key_minimum, value_minimum, packing: as in ``quantised_decode_attention``; zeros in the
            shapes of scales.
        is_causal: the last ``q_len`` keys of a sequence are those of its queries, and query ``i`` sees none of later
            ones: keys 0 to ``length - q_len + i``. Otherwise every query sees all keys.
        scale: 1 / sqrt(head_dim) by default.
        softcap: cap(x) is ``softcap * tanh(x / softcap)``, as in Gemma 2, or x where it is None.
        sink: (query_heads,), floating-point: a logit of each head that takes its share of the softmax and no value, as
            in gpt-oss.
        return_lse: return the natural log-sum-exp of each row's scores too, to merge results over parts of a cache.
        options: ``strict`` raises where no kernel serves the call, instead of gathering pages for SDPA.

    Returns:
        (batch, query_heads, q_len, value_dim) in the query's dtype, contiguous. Rows that see no key are 0. With
        ``return_lse`` also float32 (batch, query_heads, q_len): -inf where there is neither a key to see nor a sink.

    Raises:
        InvalidAttentionInputError: operands that do not fit one another. While Dynamo traces, its own error has this
            one's text.
        SiteNotLoweredError, KernelLaunchError, DatabaseError: under ``options.strict``.
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    call = AttentionCall(
        query, key_pages, value_pages, key_scale, value_scale, None, None, lengths, block_table, sink, is_causal, scale,
        softcap, PAGED, *zeros_of(PAGED, key_zero, value_zero, key_minimum, value_minimum, packing),
    )  # fmt: skip
    return attend_with_lse(call, options) if return_lse else attend(call, options)
