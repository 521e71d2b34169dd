"""Ways in which code makes K and V of as many heads as the queries have, or lets SDPA do it.

A spelling turns a stored (batch, kv_heads, length, dim) or (batch, length, kv_heads, dim) tensor into SDPA's operand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .graph import repeat_kv

Spelling = Callable[[Tensor, int], Tensor]


def as_stored(x: Tensor, group: int) -> Tensor:
    return x


def interleaved(x: Tensor, group: int) -> Tensor:
    return x.repeat_interleave(group, dim=1)


def expanded_unflattened(x: Tensor, group: int) -> Tensor:
    return x.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2)


def transposed(x: Tensor, group: int) -> Tensor:
    """Stored length first."""
    return x.transpose(1, 2)


def repeated_length_first(x: Tensor, group: int) -> Tensor:
    """Repeated where it is stored, length first, then transposed."""
    batch, length, heads, dim = x.shape
    return x[:, :, :, None, :].expand(batch, length, heads, group, dim).reshape(batch, length, -1, dim).transpose(1, 2)


def repeated_then_copied(x: Tensor, group: int) -> Tensor:
    return repeat_kv(x, group).contiguous().view(x.shape[0], -1, *x.shape[2:])


def tiled(x: Tensor, group: int) -> Tensor:
    """Query head h reads KV head h % kv_heads: another order than GQA's, and no grouping."""
    return x.repeat(1, group, 1, 1)


def tiled_by_expand(x: Tensor, group: int) -> Tensor:
    """The same order spelt with views, one of which looks like repeat-KV."""
    batch, heads, length, dim = x.shape
    return x[:, None].expand(batch, group, heads, length, dim).reshape(batch, group * heads, length, dim)


def gathered(x: Tensor, group: int) -> Tensor:
    """GQA's order, spelt in a way that shows only in values."""
    return x[:, torch.arange(x.shape[1] * group, device=x.device) // group]


__all__ = [
    "Spelling", "as_stored", "expanded_unflattened", "gathered", "interleaved", "repeat_kv", "repeated_length_first",
    "repeated_then_copied", "tiled", "tiled_by_expand", "transposed",
]  # fmt: skip
