"""Recogniser of FlexAttention: its block mask and its score_mod become one dense mask, a scale and a soft cap."""

from __future__ import annotations

import functools
import math

from torch.fx import Graph, Node

from .axes import dims_of
from .block_mask import visible
from .changes import Fill
from .compose import composed_mask, require_swallowing
from .flex_call import output_of, read_call
from .flex_marker import MARKED_FLEX
from .marked import stored_pair
from .reshape import as_dtype
from .score_mod import read_score_mod
from .sdpa import is_heads_first
from .site import LogSumExp, Site, describe_site
from .trace import insert_call
from .views import aten


def recognise_marked_flex(node: Node) -> Site | None:
    """The site of a marker behind flex attention.

    Raises:
        Refused: ``score_mod`` is not understood, the maximum of the scores is used, or ``describe_site`` refuses.
    """
    if node.target is not MARKED_FLEX:
        return None
    out, index = output_of(node), node.args[1]
    call = read_call(out)
    q_value, k_value = call.q.meta["val"], call.k.meta["val"]
    dims = dims_of((*q_value.shape[:3], k_value.shape[2]))
    graph = node.graph
    with graph.inserting_before(node):
        changes = read_score_mod(graph, node, call, dims)
        seen = visible(graph, node, call)
        terms = changes.terms if seen is None else [*changes.terms, Fill(seen, dims, False, -math.inf)]
        mask = composed_mask(graph, node, terms, dims, q_value.dtype)
    key, value = stored_pair(call.k, call.v)
    heads_first = is_heads_first(node.meta["val"])
    used = tuple(
        LogSumExp(anchor, functools.partial(_in_its_units, graph, anchor, call.log_of_two))
        for anchor in call.log_sum_exps
    )
    if used:
        require_swallowing(terms, mask)
    spec = describe_site(
        call.q, key, value, mask, False, changes.scale, heads_first, softcap=changes.softcap, has_lse=bool(used)
    )
    return Site(
        node, index, "flex", call.q, key, value, mask, False, spec.scale, heads_first, spec,  # type: ignore[arg-type]
        log_sum_exps=used,
    )  # fmt: skip


def _in_its_units(graph: Graph, anchor: Node, log_of_two: bool, lse: Node) -> Node:
    """A natural log-sum-exp as flex attention's operator has it."""
    if log_of_two:
        lse = insert_call(graph, aten.mul.Tensor, lse, 1 / math.log(2))
    return as_dtype(graph, lse, anchor.meta["val"].dtype)
