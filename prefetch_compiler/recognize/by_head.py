"""Masks that differ between heads: caches from which each head has evicted what it does not need.

A sequence's bounds are those of all its heads together, and so the shortest head would read as far as the longest.
Every KV head is made a sequence of its own, with its own bounds: a matter of views, for queries, K, V and mask alike.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Graph, Node

from ..spec import MaskKind
from .axes import shape_of
from .reshape import contiguous, permute, reshape, size_argument
from .site import Site, describe_site
from .sizes import is_symbolic, same
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
    if "q_len" in site.spec.symbolic or not (_folds(site.key) and _folds(site.value)):
        return None
    graph, kv_heads, group = site.anchor.graph, site.spec.kv_heads, site.spec.group
    with graph.inserting_before(site.anchor):
        key, value = (_folded_cache(graph, stored, kv_heads) for stored in (site.key, site.value))
        q = _folded_rows(graph, site.q, group)
        mask = _folded_rows(graph, mask, group)
    spec = describe_site(q, key, value, mask, False, site.scale, True, softcap=site.spec.softcap)

    def restore(result: Node) -> Node:
        batch = size_argument(graph, site.q, 0)
        q_len, dim = site.spec.q_len, site.spec.value_dim
        rows = reshape(graph, result, [batch, kv_heads * group, q_len, dim])
        if not site.heads_first:
            rows = permute(graph, contiguous(graph, permute(graph, rows, [0, 2, 1, 3])), [0, 2, 1, 3])
        return site.restore(rows)

    return replace(site, q=q, key=key, value=value, mask=mask, spec=spec, heads_first=True, restore=restore)


def _differs_by_head(site: Site, mask: Node) -> bool:
    """Whether every head of every sequence has a mask of its own."""
    shape, queries = shape_of(mask), shape_of(site.q)
    return len(shape) == 4 and same(shape[0], queries[0]) and same(shape[1], queries[1]) and not same(shape[1], 1)


def _folds(stored: StoredKV) -> bool:
    """Whether the heads of one sequence end where those of the next begin."""
    value = stored.base.meta["val"]
    batch, head = stored.order[:2]
    follows = same(value.stride(batch), value.shape[head] * value.stride(head))
    return follows or same(value.shape[batch], 1)


def _folded_cache(graph: Graph, stored: StoredKV, kv_heads: int) -> StoredKV:
    """(batch, kv_heads, len, dim) as (batch * kv_heads, 1, len, dim)."""
    cache = permute(graph, stored.base, list(stored.order))
    length, dim = size_argument(graph, cache, 2), size_argument(graph, cache, 3)
    if is_symbolic(shape_of(cache)[0]):
        sizes = [-1, 1, length, dim]
    else:
        sizes = [int(shape_of(cache)[0]) * kv_heads, 1, length, dim]
    return StoredKV(insert_call(graph, aten.view.default, cache, sizes), (0, 1, 2, 3))


def _folded_rows(graph: Graph, rows: Node, group: int) -> Node:
    """(batch, query_heads, q, ...) as (batch * kv_heads, group, q, ...)."""
    shape = shape_of(rows)
    batch = -1 if is_symbolic(shape[0]) else int(shape[0]) * int(shape[1]) // group
    return reshape(graph, rows, [batch, group, size_argument(graph, rows, 2), size_argument(graph, rows, 3)])
