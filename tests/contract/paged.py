"""Paged problems: caches in shuffled pages, with NaN wherever nobody may look and table entries that lead nowhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import DEVICE
from .poison import NAN

# Stale table entries: negative, just outside, and as large as they get.
GARBAGE = (-1, -(2**31), 2**31 - 1, 1 << 20)


@dataclass(frozen=True)
class PagedProblem:
    """``q``, ``k``, ``v`` and ``mask`` say in plain tensors what is to be computed, all finite. ``key_pages``,
    ``value_pages`` (pages, kv_heads, page_size, dim), ``table`` and ``lengths`` are what a kernel is given."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float
    key_pages: Tensor
    value_pages: Tensor
    table: Tensor
    lengths: Tensor


def paged_problem(
    lengths: Sequence[int],
    page_size: int,
    *,
    capacity: int,
    group: int = 2,
    kv_heads: int = 2,
    head_dim: int = 16,
    value_dim: int = 16,
    q_len: int = 1,
    dtype: torch.dtype = torch.float32,
    pages_first: bool = True,
) -> PagedProblem:
    """Args:
    capacity: keys that a sequence may hold, whole pages.
    pages_first: heads outside of a page's keys, or inside.
    """
    assert capacity % page_size == 0
    batch, of_sequence = len(lengths), capacity // page_size
    generator = torch.Generator(DEVICE).manual_seed(1000 * page_size + sum(lengths))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE).to(dtype)

    q = normal(batch, group * kv_heads, q_len, head_dim)
    k, v = (normal(batch, kv_heads, capacity, dim) for dim in (head_dim, value_dim))
    held = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    visible = torch.arange(capacity, device=DEVICE) < held[:, None]
    # More pages than are in use, in random order: the first and the last of the pool among those that nobody owns.
    order = 1 + torch.randperm(batch * of_sequence, generator=torch.Generator().manual_seed(7))
    table = order.view(batch, of_sequence).to(DEVICE)

    def pool(cache: Tensor) -> Tensor:
        stale = cache.masked_fill(~visible[:, None, :, None], NAN)
        rows = stale.unflatten(2, (of_sequence, page_size)).transpose(1, 2).flatten(0, 1)
        shape = (batch * of_sequence + 2, *rows.shape[1:])
        if pages_first:
            pages = torch.full(shape, NAN, dtype=dtype, device=DEVICE)
        else:
            pages = torch.full((shape[0], shape[2], shape[1], shape[3]), NAN, dtype=dtype, device=DEVICE).transpose(
                1, 2
            )
        pages[table.flatten()] = rows
        return pages

    key_pages, value_pages = pool(k), pool(v)
    stale = ~visible[:, ::page_size]
    garbage = torch.tensor(GARBAGE, dtype=torch.int32, device=DEVICE).repeat(table.numel())[: table.numel()]
    table = torch.where(stale, garbage.view(table.shape), table.to(torch.int32))
    return PagedProblem(
        q, k, v, visible[:, None, None, :], False, 1 / math.sqrt(head_dim), key_pages, value_pages, table, held
    )
