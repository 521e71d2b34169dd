"""What is adverse about a case's queries, keys and values: numbers that softmax, accumulators or formats may trip over.

Each kind changes normal numbers in place: q (cases, query_heads, q_len, dim), k and v (cases, kv_heads, kv_len, dim),
float32, all of the cases of that kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def normal(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    """Nothing is."""


def large_logits(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    q.mul_(8)


def equal_logits(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    """All keys alike: weights of 1 / keys each."""
    k.copy_(k[:, :, :1].clone().expand_as(k))


def zero_queries(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    q.zero_()


def one_hot(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    """One key, the first, takes all of the weight that rounding leaves."""
    k[:, :, :1] = 6 * _leading(q, k)


def rising(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    """Every key is the largest so far: what was summed is rescaled by every tile."""
    k.mul_(0.1).add_(_leading(q, k) * torch.linspace(0, 4, k.shape[2], device=k.device)[:, None])


def falling(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    """The first tile has the maximum, and the last ones next to nothing."""
    k.mul_(0.1).add_(_leading(q, k) * torch.linspace(4, 0, k.shape[2], device=k.device)[:, None])


def cancelling(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    """Values that add up to next to nothing."""
    even = v[:, :, ::2]
    v[:, :, 1::2] = -even[:, :, : v.shape[2] // 2]


def outlier_channel(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    k[..., 0].mul_(20)
    v[..., 0].mul_(20)


def sparse_values(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    """One value of a key is large among zeros."""
    v.zero_()
    v[:, :, k.shape[2] // 3] = 16.0


def denormal_values(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    v.mul_(torch.finfo(dtype).tiny / 4)


def denormal_queries(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    q.mul_(torch.finfo(dtype).tiny / 4)


def huge_values(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    v.mul_(2.0**10 if dtype is torch.float16 else 2.0**100)


def _leading(q: Tensor, k: Tensor) -> Tensor:
    """The first query of each KV head, as a key: (cases, kv_heads, 1, dim)."""
    group = q.shape[1] // k.shape[1]
    return q[:, ::group, :1]


Kind = Callable[[Tensor, Tensor, Tensor, torch.dtype], None]
KINDS: tuple[Kind, ...] = (
    normal, large_logits, equal_logits, zero_queries, one_hot, rising, falling, cancelling, outlier_channel,
    sparse_values, denormal_values, denormal_queries, huge_values,
)  # fmt: skip
# Numbers of these would leave those of sequences that share their scales none.
RESCALING: tuple[Kind, ...] = (denormal_values, huge_values)
# Latents are keys and values at once: what makes the ones adverse makes the others so too.
OF_LATENTS: tuple[Kind, ...] = (normal, large_logits, zero_queries, one_hot, rising, falling, denormal_queries)
