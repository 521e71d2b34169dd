"""Paged problems: caches in shuffled pages, with NaN wherever nobody may look and table entries that lead nowhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefetch_compiler.quantisation import quantise_for
from prefetch_compiler.spec import QUANTISED_FORMATS, QuantisedCache, ScaleGranularity, Storage

from .cases import DEVICE
from .poison import NAN
from .quantised_cases import NAN_BYTE

# Stale table entries: negative, just outside, and as large as they get.
GARBAGE = (-1, -(2**31), 2**31 - 1, 1 << 20)


@dataclass(frozen=True)
class PagedProblem:
    """``q``, ``k``, ``v`` and ``mask`` say in plain tensors what is to be computed, all finite; of a quantised cache
    ``k`` and ``v`` are its exact numbers in float64. ``key_pages``, ``value_pages`` (pages, kv_heads, page_size, dim),
    their scales and zeros, ``table``, ``lengths`` and ``causal`` are what a kernel is given."""

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
    causal: bool = False
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None
    softcap: float | None = None
    sink: Tensor | None = None
    key_zero: Tensor | None = None
    value_zero: Tensor | None = None
    packing: str = ""


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
    causal: bool = False,
    kv_dtype: torch.dtype | None = None,
    packing: str = "",
    scales: str = "token",
    softcap: float | None = None,
    sink: bool = False,
) -> PagedProblem:
    """Args:
    capacity: keys that a sequence may hold, whole pages.
    pages_first: heads outside of a page's keys, or inside.
    kv_dtype: of a quantised cache, whose scales are of ``scales``; with a ``packing`` or of uint8 it has zeros too.
    sink: whether every query head has one.
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
        """From (batch, kv_heads, capacity, ...) to (pages, kv_heads, page_size, ...), NaN where nobody may look."""
        one_byte = cache.dtype in QUANTISED_FORMATS
        nan, numbers = (NAN_BYTE, cache.view(torch.uint8)) if one_byte else (NAN, cache)
        unseen = ~visible[:, None].reshape(batch, 1, capacity, *[1] * (cache.ndim - 3))
        rows = numbers.masked_fill(unseen, nan).unflatten(2, (of_sequence, page_size)).transpose(1, 2).flatten(0, 1)
        inner = list(rows.shape[1:])
        if not pages_first:
            inner[:2] = reversed(inner[:2])
        pages = torch.full((batch * of_sequence + 2, *inner), nan, dtype=numbers.dtype, device=DEVICE)
        if not pages_first:
            pages = pages.transpose(1, 2)
        pages[table.flatten()] = rows
        return pages.view(cache.dtype)

    stale = ~visible[:, ::page_size]
    garbage = torch.tensor(GARBAGE, dtype=torch.int32, device=DEVICE).repeat(table.numel())[: table.numel()]
    given_table = torch.where(stale, garbage.view(table.shape), table.to(torch.int32))
    behind = (q_len - 1 - torch.arange(q_len, device=DEVICE)) * causal
    mask = torch.arange(capacity, device=DEVICE) < (held[:, None] - behind)[:, None, :, None]
    key_scale = value_scale = key_zero = value_zero = None
    stored = [k, v]
    if kv_dtype is not None:
        granularity = ScaleGranularity(scales)
        zeros = granularity if packing or kv_dtype is torch.uint8 else ScaleGranularity.NONE
        how = QuantisedCache(
            kv_dtype, granularity, granularity, None, zeros, zeros, torch.float32, Storage(packing=packing)
        )
        keys, values = quantise_for(how, "key", k.float()), quantise_for(how, "value", v.float())
        stored = [keys.numbers, values.numbers]
        k, v = keys.dequantised(keys.numbers), values.dequantised(values.numbers)
        shared = (keys.scale, values.scale, keys.zero, values.zero)
        key_scale, value_scale, key_zero, value_zero = (
            pool(one) if one is not None and scales == "token" else one for one in shared
        )
    return PagedProblem(
        q, k, v, mask, False, 1 / math.sqrt(head_dim), pool(stored[0]), pool(stored[1]), given_table, held, causal,
        key_scale, value_scale, softcap, normal(group * kv_heads) + math.log(capacity) if sink else None, key_zero,
        value_zero, packing,
    )  # fmt: skip
