"""Attention over most of a cache, by a kernel, and over a few tokens besides, by the graph: merged by log-sum-exps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from ..spec import MaskKind
from .dequantised import read_as_stored
from .site import Site
from .trace import inline
from .views import StoredKV


def may_be_parted(site: Site) -> bool:
    """Whether a site's attention may be one of two parts: not where its mask is additive (what a finite number hides
    shows in the log-sum-exp of a row that it hides whole), nor where scores are capped or have a sink, nor for batches
    that are symbolic."""
    if site.spec.symbolic - {"kv_len"}:
        return False
    if site.is_causal or site.sink is not None or site.spec.softcap is not None or site.spec.lse:
        return False
    return site.spec.mask is not MaskKind.ADDITIVE


def read_numbers_beside(
    site: Site, key: StoredKV, value: StoredKV, mask: Node | None, merge: Callable[[Node, Node], Node]
) -> Site | None:
    """``site`` over the numbers that most of its ``key`` and ``value`` are dequantised from, under ``mask``; None where
    they are not. ``merge`` makes their output and log-sum-exp the site's.

    Raises:
        Refused: the layout of the numbers is.
    """
    spec = replace(site.spec, lse=True)
    part = replace(site, key=key, value=value, mask=mask, spec=spec, restore=lambda result: result)
    numbers = read_as_stored(part)
    if numbers is None:
        return None
    return replace(numbers, merge=lambda out, lse: site.restore(merge(numbers.restore(out), lse)))


def merged_with(site: Site, out: Node, lse: Node, key: Node, value: Node, seen: Node | None) -> Node:
    """``out`` and ``lse`` of most keys, and attention over ``key`` and ``value`` (1|batch, kv_heads, few, dim) besides,
    where ``seen`` (1|batch, 1|query_heads, 1|q_len, 1|few) says so. In the memory order of the site."""
    order = [0, 1, 2, 3] if site.heads_first else [0, 2, 1, 3]

    def merge(*given: Tensor) -> Tensor:
        return with_few(site.scale, *given).permute(order).contiguous().permute(order)

    operands = [out, lse, site.q, key, value, *([] if seen is None else [seen])]
    return inline(site.anchor.graph, site.anchor, merge, operands)


def with_few(
    scale: float, out: Tensor, lse: Tensor, q: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None
) -> Tensor:
    """``out`` (batch, query_heads, q_len, value_dim) of most keys, whose log-sum-exp is ``lse`` (batch, query_heads,
    q_len), with that of a few more. In float32 but for what is given and the result. Products are written as sums,
    which Inductor fuses and which hold no length."""
    group = q.shape[1] // key.shape[1]
    key, value = (few.float().repeat_interleave(group, 1)[:, :, None] for few in (key, value))
    scores = (q.float()[:, :, :, None] * key).sum(-1) * scale
    if seen is not None:
        scores = torch.where(seen, scores, -torch.inf)
    most = scores.amax(-1, keepdim=True)
    most = torch.where(most == -torch.inf, 0.0, most)
    weights = torch.exp(scores - most)
    total = weights.sum(-1, keepdim=True)
    few_lse = most + torch.log(total)
    few_out = (weights[..., None] * value).sum(-2) / torch.where(total == 0, 1.0, total)
    share = torch.where(total == 0, 0.0, torch.sigmoid(few_lse - lse[..., None]))
    return torch.lerp(out.float(), few_out, share).to(out.dtype)
