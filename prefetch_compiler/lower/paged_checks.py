"""What ``paged_decode_attention`` takes: each check raises an InvalidPagedInputError that names the tensor."""

from __future__ import annotations

import torch

from ..errors import InvalidPagedInputError
from ..spec import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, MAX_Q_LEN, PAGE_SIZES, SUPPORTED_DTYPES


def _require(holds: bool, argument: str, tensor: torch.Tensor, expected: str) -> None:
    if not holds:
        raise InvalidPagedInputError(argument, tensor, expected)


def check_pools(query: torch.Tensor, key_pages: torch.Tensor, value_pages: torch.Tensor) -> None:
    """Queries and page pools."""
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


def check_table(query: torch.Tensor, block_table: torch.Tensor) -> None:
    """A row of pages for each sequence."""
    batch = query.shape[0]
    right = block_table.ndim == 2 and block_table.shape[0] == batch and block_table.shape[1] > 0
    _require(right, "block_table", block_table, f"({batch}, max_pages)")
    _require(block_table.dtype == torch.int32, "block_table", block_table, "of dtype torch.int32")
    adjacent = block_table.shape[1] == 1 or block_table.stride(1) == 1
    _require(adjacent, "block_table", block_table, "stored with its last stride 1")
    _require_device(query, "block_table", block_table)


def check_lengths(query: torch.Tensor, lengths: torch.Tensor) -> None:
    """One for each sequence."""
    batch = query.shape[0]
    _require(lengths.ndim == 1 and lengths.shape[0] == batch, "lengths", lengths, f"({batch},)")
    _require(lengths.dtype in (torch.int32, torch.int64), "lengths", lengths, "of dtype torch.int32 or torch.int64")
    _require_device(query, "lengths", lengths)


def _require_device(query: torch.Tensor, argument: str, tensor: torch.Tensor) -> None:
    _require(tensor.device == query.device, argument, tensor, f"on the query's device, {query.device}")
