"""paged_decode_attention(): decode attention over a paged KV cache, for models that call it themselves."""

from __future__ import annotations

import torch

from .errors import InvalidPagedInputError
from .lower.paged_ops import PAGED_DECODE_ATTENTION
from .recognize.bounds import length_bounds
from .spec import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, MAX_Q_LEN, PAGE_SIZES, SUPPORTED_DTYPES


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
        InvalidPagedInputError: a tensor with a shape, stride, dtype or device that is none of the above.
    """
    _check_pools(query, key_pages, value_pages)
    _check_table(query, block_table, lengths)
    bounds = length_bounds(lengths, block_table.shape[1] * key_pages.shape[2])
    rows = query if query.stride(3) == 1 else query.contiguous()
    chosen = query.shape[3] ** -0.5 if scale is None else scale
    out: torch.Tensor = PAGED_DECODE_ATTENTION(rows, key_pages, value_pages, block_table, bounds, chosen)
    return out


def _require(holds: bool, argument: str, tensor: torch.Tensor, expected: str) -> None:
    if not holds:
        raise InvalidPagedInputError(argument, tensor, expected)


def _check_pools(query: torch.Tensor, key_pages: torch.Tensor, value_pages: torch.Tensor) -> None:
    pools = (("query", query), ("key_pages", key_pages), ("value_pages", value_pages))
    for name, tensor in pools:
        _require(tensor.ndim == 4, name, tensor, "of 4 dimensions")
        _require(tensor.dtype == query.dtype, name, tensor, f"of the query's dtype, {query.dtype}")
        _require(tensor.device == query.device, name, tensor, f"on the query's device, {query.device}")
        dim = tensor.shape[3]
        fits = dim % HEAD_DIM_MULTIPLE == 0 and 0 < dim <= MAX_HEAD_DIM
        _require(fits, name, tensor, f"of heads of a multiple of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM}")
    names = ", ".join(str(dtype) for dtype in SUPPORTED_DTYPES)
    _require(query.dtype in SUPPORTED_DTYPES, "query", query, f"of one of the dtypes {names}")
    _require(0 < query.shape[2] <= MAX_Q_LEN, "query", query, f"of 1 to {MAX_Q_LEN} query positions")
    _require(key_pages.shape[3] == query.shape[3], "key_pages", key_pages, f"of heads of {query.shape[3]}")
    for name, tensor in pools[1:]:
        _require(tensor.shape[2] in PAGE_SIZES, name, tensor, "of pages of 1 to 256 keys, a power of two")
        _require(tensor.shape[0] > 0, name, tensor, "of at least one page")
        _require(tensor.stride(3) == 1, name, tensor, "stored with its last stride 1")
    same = value_pages.shape[:3] == key_pages.shape[:3]
    _require(same, "value_pages", value_pages, f"of {tuple(key_pages.shape[:3])} pages, heads and keys, as key_pages")
    heads = key_pages.shape[1]
    divides = heads > 0 and query.shape[1] % heads == 0
    _require(divides, "query", query, f"of a multiple of the {heads} KV heads")


def _check_table(query: torch.Tensor, block_table: torch.Tensor, lengths: torch.Tensor) -> None:
    batch = query.shape[0]
    right = block_table.ndim == 2 and block_table.shape[0] == batch and block_table.shape[1] > 0
    _require(right, "block_table", block_table, f"({batch}, max_pages)")
    _require(block_table.dtype == torch.int32, "block_table", block_table, "of dtype torch.int32")
    adjacent = block_table.shape[1] == 1 or block_table.stride(1) == 1
    _require(adjacent, "block_table", block_table, "stored with its last stride 1")
    _require(lengths.ndim == 1 and lengths.shape[0] == batch, "lengths", lengths, f"({batch},)")
    _require(lengths.dtype in (torch.int32, torch.int64), "lengths", lengths, "of dtype torch.int32 or torch.int64")
    for name, tensor in (("block_table", block_table), ("lengths", lengths)):
        _require(tensor.device == query.device, name, tensor, f"on the query's device, {query.device}")
