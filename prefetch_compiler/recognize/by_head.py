"""Masks that differ between heads: caches from which each head has evicted what it does not need.

A sequence's bounds are those of all its heads together, and so the shortest head would read as far as the longest.
Every KV head is made a sequence of its own, with its own bounds: a matter of views, for queries, K, V and mask alike.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Graph, Node

from ..spec import MaskKind
from .axes import shape_of
from .folding import folded_batch, folded_mask, folded_rows, unfolded
from .reshape import permute, size_argument
from .site import Site, describe_site
from .sizes import same
from .trace import insert_call
from .views import StoredKV, aten


def read_by_head(site: Site) -> Site | None:
    """``site`` with the KV heads in its batch; None where its mask is the same for all heads, or additive (a bias hides
    nothing), or where that would take more than views of K and V."""
    mask = site.mask
    if mask is None or site.spec.mask is not MaskKind.BOOL or not _differs_by_head(site, mask):
        return None
    if site.spec.kv_heads == 1 or site.sink is not None or site.spec.cache is not None or site.pages is not None:
        return None
    if "q_len" in site.spec.symbolic or site.spec.lse or not all(_folds(site, one) for one in (site.key, site.value)):
        return None
    graph, kv_heads = site.anchor.graph, site.spec.kv_heads
    with graph.inserting_before(site.anchor):
        key, value = (_folded_cache(graph, stored, kv_heads) for stored in (site.key, site.value))
        q = folded_rows(graph, site.q, site.spec.group)
    with graph.inserting_before(site.met_at):
        mask = folded_mask(graph, mask, site)
    spec = describe_site(q, key, value, mask, False, site.scale, True, softcap=site.spec.softcap)
    return replace(
        site, q=q, key=key, value=value, mask=mask, spec=spec, heads_first=True,
        restore=lambda result: unfolded(site, graph, result),
    )  # fmt: skip


def _differs_by_head(site: Site, mask: Node) -> bool:
    """Whether every head of every sequence has a mask of its own."""
    shape, queries = shape_of(mask), shape_of(site.q)
    return len(shape) == 4 and same(shape[0], queries[0]) and same(shape[1], queries[1]) and not same(shape[1], 1)


def _folds(site: Site, stored: StoredKV) -> bool:
    """Whether every sequence has heads of its own, and those of one end where those of the next begin."""
    value = stored.base.meta["val"]
    batch, head = stored.order[:2]
    if not same(value.shape[batch], shape_of(site.q)[0]):
        return False
    follows = same(value.stride(batch), value.shape[head] * value.stride(head))
    return follows or same(value.shape[batch], 1)


def _folded_cache(graph: Graph, stored: StoredKV, kv_heads: int) -> StoredKV:
    """(batch, kv_heads, len, dim) as (batch * kv_heads, 1, len, dim)."""
    cache = permute(graph, stored.base, list(stored.order))
    sizes = [folded_batch(cache, kv_heads), 1, size_argument(graph, cache, 2), size_argument(graph, cache, 3)]
    return StoredKV(insert_call(graph, aten.view.default, cache, sizes), (0, 1, 2, 3))
