"""A cache of one sequence that serves a whole batch, as a prefix that all sequences share: queries packed as one group.

Query heads that share a KV head are rows of one tile, so that the head is read once. So are the queries of a batch that
shares it: what would be read once for each sequence is read once for up to 128 rows of them all. In place of the views
of keys and values that repeat them, the queries, which are few, are put in another order, and the output back.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from .reshape import permute, reshape
from .site import LogSumExp, Site, describe_site
from .sizes import is_symbolic, same


def read_packed(site: Site) -> Site | None:
    """The site with one sequence, whose query heads are those of all, where K and V are those of one sequence and the
    mask does not differ between sequences or heads; else None.

    The batch has to be known: kernels are compiled for the query heads of a KV head.
    """
    if not _can_be_packed(site):
        return None
    graph = site.anchor.graph
    batch, heads, q_len, head_dim = (int(size) for size in site.q.meta["val"].shape)
    kv_heads = site.spec.kv_heads
    apart = [batch, kv_heads, heads // kv_heads, q_len]
    with graph.inserting_before(site.anchor):
        rows = permute(graph, reshape(graph, site.q, [*apart, head_dim]), [1, 0, 2, 3, 4])
        q = reshape(graph, rows, [1, batch * heads, q_len, head_dim])
    spec = describe_site(
        q, site.key, site.value, site.mask, site.is_causal, site.scale, True,
        softcap=site.spec.softcap, has_lse=site.spec.lse, cache=site.spec.cache,
    )  # fmt: skip
    by_head = [kv_heads, batch, heads // kv_heads, q_len]

    def unpacked(result: Node) -> Node:
        value_dim = int(result.meta["val"].shape[3])
        result = reshape(graph, result, [*by_head, value_dim])
        if site.heads_first:
            return reshape(graph, permute(graph, result, [1, 0, 2, 3, 4]), [batch, heads, q_len, value_dim])
        queries_first = reshape(graph, permute(graph, result, [1, 3, 0, 2, 4]), [batch, q_len, heads, value_dim])
        return permute(graph, queries_first, [0, 2, 1, 3])

    def unpacked_lse(lse: Node) -> Node:
        lse = permute(graph, reshape(graph, lse, by_head), [1, 0, 2, 3])
        return reshape(graph, lse, [batch, heads, q_len])

    def of(use: LogSumExp) -> LogSumExp:
        return replace(use, restore=lambda lse: use.restore(unpacked_lse(lse)))

    return replace(
        site,
        q=q,
        spec=spec,
        heads_first=True,
        restore=lambda result: site.restore(unpacked(result)),
        log_sum_exps=tuple(map(of, site.log_sum_exps)),
    )


def _can_be_packed(site: Site) -> bool:
    batch, _, q_len, _ = site.q.meta["val"].shape
    if is_symbolic(batch) or is_symbolic(q_len) or int(batch) == 1:
        return False
    if site.sink is not None or site.pages is not None:
        return False
    stored = (site.key, site.value)
    if not all(same(one.base.meta["val"].shape[one.order[0]], 1) for one in stored):
        return False
    mask = () if site.mask is None else site.mask.meta["val"].shape[:-2]
    return all(same(size, 1) for size in mask)
