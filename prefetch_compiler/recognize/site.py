"""A site in a functional ATen graph: the node to replace, the operands of the kernel, and the spec they make."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import Node

from ..errors import Refused
from ..spec import AttentionSpec, MaskKind, QuantisedCache, TensorLayout
from .sizes import Size, fixed, hint, is_symbolic, same
from .views import StoredKV

# Stand-in for a length that is known only on the device (an unbacked symbol): long enough to be worth splitting.
UNKNOWN_KV_LEN = 8192


def _as_it_is(result: Node) -> Node:
    return result


@dataclass(frozen=True)
class Pages:
    """Of a paged cache: ``table`` (batch, pages of a sequence), whose integers name pages of ``page_size`` keys of the
    pools, negative ones from their end."""

    table: Node
    page_size: int

    @property
    def kv_len(self) -> Size:
        pages: Size = self.table.meta["val"].shape[1]
        return pages * self.page_size


@dataclass(frozen=True)
class LogSumExp:
    """A use of a site's log-sum-exp.

    Attributes:
        anchor: the node whose value it replaces.
        restore: adds nodes that make float32 (batch, query_heads, q_len), in natural units, what the anchor is.
    """

    anchor: Node
    restore: Callable[[Node], Node] = _as_it_is


@dataclass(frozen=True)
class Site:
    """One decode attention, every operand and use accounted for.

    Attributes:
        anchor: the node whose value the kernel's output replaces.
        index: the site's number in its graph.
        form: name of the recogniser.
        key, value: the stored tensors, and how they are permuted to (batch, kv_heads, len, dim).
        mask: at most 4-D, broadcastable to (batch, query_heads, q_len, kv_len).
        sink: (query_heads,) logits of attention sinks.
        key_scale, value_scale: (1|batch, 1|kv_heads, 1|kv_len), of a quantised cache; of tokens of a paged one (pages,
            1|kv_heads, page_size).
        key_zero, value_zero: likewise; what they are, the spec's cache says.
        pages: of a paged cache, whose ``key`` and ``value`` are (pages, kv_heads, page_size, dim).
        rope: the rotary keys of a latent cache, whose ``key`` and ``value`` are both its latents.
        restore: adds views that make (batch, query_heads, q_len, value_dim) what the anchor is.
        merge: in place of ``restore``, where the site is only a part of the attention: adds nodes that make the output
            and the log-sum-exp, which the spec has then, what the anchor is.
        log_sum_exps: of scores; nodes that use them may stand before the anchor, but the anchor depends on none.
        marker: where the site is met, if that is before its anchor. What sites share is put there: the next one that is
            met may have its anchor before this one's.
    """

    anchor: Node
    index: int
    form: str
    q: Node
    key: StoredKV
    value: StoredKV
    mask: Node | None
    is_causal: bool
    scale: float
    heads_first: bool
    spec: AttentionSpec
    sink: Node | None = None
    key_scale: Node | None = None
    value_scale: Node | None = None
    key_zero: Node | None = None
    value_zero: Node | None = None
    pages: Pages | None = None
    rope: StoredKV | None = None
    restore: Callable[[Node], Node] = _as_it_is
    merge: Callable[[Node, Node], Node] | None = None
    log_sum_exps: tuple[LogSumExp, ...] = ()
    marker: Node | None = None

    @property
    def met_at(self) -> Node:
        """The node before which to put what sites share."""
        return self.marker or self.anchor

    @property
    def kv_len(self) -> Size:
        length: Size = self.key.base.meta["val"].shape[self.key.order[2]]
        return length if self.pages is None else self.pages.kv_len


# A recogniser looks at one node of a functional graph: a Site, None (not mine), or Refused (mine, but not servable).
Recogniser = Callable[[Node], Site | None]


def _layout(stored: StoredKV, batch: Size, paged: bool) -> tuple[list[Size], TensorLayout]:
    """Shape as (batch, kv_heads, len, dim), and strides with symbolic ones by their hints. One sequence that serves a
    whole batch is read with a batch stride of 0; the only page of a pool is no such sequence."""
    value: torch.Tensor = stored.base.meta["val"]
    shape: list[Size] = [value.shape[d] for d in stored.order]
    strides = [hint(value.stride(d), 0) for d in stored.order]
    if same(shape[0], 1) and not same(batch, 1) and not paged:
        strides[0] = 0
    return shape, TensorLayout(strides[0], strides[1], strides[2])


def _mask_facts(mask: Node | None) -> tuple[MaskKind, torch.dtype | None, bool]:
    """Kind, dtype, and whether the mask differs between query heads or query positions."""
    if mask is None:
        return MaskKind.NONE, None, False
    value: torch.Tensor = mask.meta["val"]
    kind = MaskKind.BOOL if value.dtype == torch.bool else MaskKind.ADDITIVE
    per_row = any(not same(size, 1) for size in value.shape[-3:-1])
    return kind, value.dtype, per_row


def describe_site(
    q: Node,
    key: StoredKV,
    value: StoredKV,
    mask: Node | None,
    is_causal: bool,
    scale: float | None,
    heads_first: bool,
    *,
    softcap: float | None = None,
    has_sink: bool = False,
    cache: QuantisedCache | None = None,
    pages: Pages | None = None,
    has_lse: bool = False,
    rope: StoredKV | None = None,
) -> AttentionSpec:
    """The spec of a site's operands.

    Raises:
        Refused: the stored heads do not divide the query heads, or a stored row is not contiguous.
    """
    q_value: torch.Tensor = q.meta["val"]
    batch, query_heads, q_len, query_dim = q_value.shape
    k_shape, key_layout = _layout(key, batch, pages is not None)
    v_shape, value_layout = _layout(value, batch, pages is not None)
    kv_len = k_shape[2] if pages is None else pages.kv_len
    rope_dim, rope_layout = 0, None
    if rope is not None:
        rope_shape, rope_layout = _layout(rope, batch, False)
        rope_dim = int(rope_shape[3])
    for name, stored in (("key", key), ("value", value), ("rotary key", rope)):
        if stored is not None and not same(stored.base.meta["val"].stride(stored.order[3]), 1):
            raise Refused(f"{name} rows are not contiguous along head_dim: store the cache with head_dim last")
    query_heads, kv_heads = (fixed(size, "the number of heads") for size in (query_heads, k_shape[1]))
    query_dim, value_dim = (fixed(size, "head_dim") for size in (query_dim, v_shape[3]))
    if query_heads % kv_heads:
        raise Refused(
            f"{query_heads} query heads do not share {kv_heads} KV heads evenly: use a number of query heads that is a "
            "multiple of the KV heads"
        )
    kind, mask_dtype, per_row = _mask_facts(mask)
    symbolic = {"batch": batch, "q_len": q_len, "kv_len": kv_len}
    return AttentionSpec(
        batch=hint(batch, 1),
        query_heads=query_heads,
        kv_heads=kv_heads,
        q_len=hint(q_len, 1),
        kv_len=hint(kv_len, UNKNOWN_KV_LEN),
        head_dim=query_dim - rope_dim,
        value_dim=value_dim if cache is None else cache.storage.columns(value_dim),
        dtype=q_value.dtype,
        scale=1 / math.sqrt(query_dim) if scale is None else scale,
        key_layout=key_layout,
        value_layout=value_layout,
        mask=kind,
        mask_dtype=mask_dtype,
        mask_per_row=per_row,
        is_causal=is_causal,
        out_heads_first=heads_first,
        softcap=softcap,
        sink=has_sink,
        lse=has_lse,
        symbolic=frozenset(name for name, size in symbolic.items() if is_symbolic(size)),
        cache=cache,
        page_size=0 if pages is None else pages.page_size,
        rope_dim=rope_dim,
        rope_layout=rope_layout,
    )
