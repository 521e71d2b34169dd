"""paged_decode_attention(): decode attention over a paged KV cache, for models that call it themselves."""

from __future__ import annotations

import torch

from .lower.paged_checks import check_lengths, check_pools, check_table
from .lower.paged_ops import PAGED_DECODE_ATTENTION
from .recognize.bounds import length_bounds


def paged_decode_attention(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(q k^T * scale) v over the first ``lengths`` keys of each sequence, which every query position sees.

    May be called in eager code and under ``torch.compile(fullgraph=True)`` with any backend. Nothing waits for the
    device, so CUDA graphs can hold it, once it has run with the same shapes before. No gradients.

    Args:
        query: (batch, query_heads, q_len, head_dim), its last stride 1.
        key_pages: (pages, kv_heads, page_size, head_dim) in any memory order whose last stride is 1; of a pool that is
            stored as (pages, page_size, kv_heads, head_dim) pass ``pool.transpose(1, 2)``. Pages of 1 to 256 keys, a
            power of two. Query head ``h`` reads KV head ``h // (query_heads // kv_heads)``.
        value_pages: (pages, kv_heads, page_size, value_dim), likewise.
        block_table: int32 (batch, max_pages), its last stride 1: the pages of each sequence, in the order of its keys.
            Entries of pages beyond a sequence's length may be anything; the others must be pages of the pools.
        lengths: int32 or int64 (batch,): keys that each sequence holds, those of this step among them. Lengths outside
            of what a row of the table can hold count as none, or as all of it. A sequence of length 0 gets zeros.
        scale: 1 / sqrt(head_dim) by default.

    Returns:
        (batch, query_heads, q_len, value_dim) in the query's dtype, contiguous.

    Raises:
        InvalidPagedInputError: a tensor with a shape, stride, dtype or device that is none of the above. While Dynamo
            traces, its own error has this one's text.
    """
    if not torch.compiler.is_compiling():
        check_pools(query, key_pages, value_pages)
        check_table(query, block_table)
        check_lengths(query, lengths)
    bounds = length_bounds(lengths, block_table.shape[1] * key_pages.shape[2])
    rows = query if query.stride(3) == 1 else query.contiguous()
    chosen = query.shape[3] ** -0.5 if scale is None else scale
    out: torch.Tensor = PAGED_DECODE_ATTENTION(rows, key_pages, value_pages, block_table, bounds, chosen)
    return out
