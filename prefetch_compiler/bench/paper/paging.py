"""Paged caches: block tables whose pages lie scattered, and the pages themselves, copied from a contiguous cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .kernel import BLOCK_KV


def blocks_of(context: int) -> int:
    """Blocks that hold ``context`` keys."""
    return -(-context // BLOCK_KV)


def scattered_table(batch: int, blocks: int, generator: torch.Generator) -> Tensor:
    """int32 (batch, blocks): every page of a pool of batch * blocks once, in random order."""
    pages = torch.randperm(batch * blocks, generator=generator, device=generator.device)
    return pages.to(torch.int32).reshape(batch, blocks)


def paged_copy(cache: Tensor, table: Tensor) -> Tensor:
    """``cache`` (batch, kv_heads, context, head_dim) as pages (batch * blocks, kv_heads, 16, head_dim).

    What no key fills, in the last page of a sequence, is NaN: a kernel must not let it in.
    """
    batch, kv_heads, context, head_dim = cache.shape
    blocks = table.shape[1]
    pages = cache.new_empty((batch * blocks, kv_heads, BLOCK_KV, head_dim))
    padding = (0, 0, 0, blocks * BLOCK_KV - context)
    # One sequence at a time: the copies in between are then small.
    for rows, own in zip(cache, table.long(), strict=True):
        padded = torch.nn.functional.pad(rows, padding, value=math.nan)
        pages[own] = padded.view(kv_heads, blocks, BLOCK_KV, head_dim).transpose(0, 1)
    return pages
