"""KV heads as sequences of their own: (batch, query_heads, ...) as (batch * kv_heads, group, ...), and back."""

from __future__ import annotations

from torch.fx import Graph, Node

from .axes import shape_of
from .reshape import SizeArgument, contiguous, permute, reshape, size_argument
from .site import Site
from .sizes import is_symbolic, same
from .trace import insert_call
from .views import aten


def folded_rows(graph: Graph, rows: Node, group: int) -> Node:
    """(batch, query_heads, q, ...) as (batch * kv_heads, group, q, ...)."""
    heads = int(shape_of(rows)[1])
    sizes = [folded_batch(rows, heads // group), group, size_argument(graph, rows, 2), size_argument(graph, rows, 3)]
    return reshape(graph, rows, sizes)


def folded_mask(graph: Graph, mask: Node, site: Site) -> Node:
    """Any mask of ``site``: (batch * kv_heads, 1|group, 1|q, keys). One that sequences or heads share is copied."""
    for _ in range(4 - mask.meta["val"].ndim):
        mask = insert_call(graph, aten.unsqueeze.default, mask, 0)
    batch = size_argument(graph, site.q, 0)
    shared = same(shape_of(mask)[1], 1)
    heads = site.spec.kv_heads if shared else site.spec.query_heads
    wide = insert_call(graph, aten.expand.default, mask, [batch, heads, -1, -1])
    return folded_rows(graph, wide, 1 if shared else site.spec.group)


def unfolded(site: Site, graph: Graph, result: Node) -> Node:
    """The kernel's (batch * kv_heads, group, q, value_dim), contiguous, as the output of ``site``."""
    spec = site.spec
    rows = reshape(graph, result, [size_argument(graph, site.q, 0), spec.query_heads, spec.q_len, spec.value_dim])
    if not site.heads_first:
        rows = permute(graph, contiguous(graph, permute(graph, rows, [0, 2, 1, 3])), [0, 2, 1, 3])
    return site.restore(rows)


def folded_batch(tensor: Node, kv_heads: int) -> SizeArgument:
    """The size of a batch, the first dimension of ``tensor``, times the KV heads."""
    batch = shape_of(tensor)[0]
    return -1 if is_symbolic(batch) else int(batch) * kv_heads
