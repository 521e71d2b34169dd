"""A quantised cache whose newest token attention sees as it was before quantising, as torchao's Llama example has it:
the cache is dequantised whole, and the token's key and value are written over their dequantised selves.

So attention is over two parts, which are merged by the log-sum-exp of the first: the stored numbers but for that token,
which a kernel reads as they are, and the token, whose one score for each row the graph computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .axes import shape_of
from .beside import may_be_parted, merged_with, read_numbers_beside
from .per_graph import kept_with
from .reshape import permute
from .site import Site
from .sizes import is_symbolic, same
from .trace import inline
from .value_numbers import value_number
from .views import StoredKV, aten

_LENGTH = 2


@dataclass(frozen=True)
class _Written:
    """``over`` with ``token`` at ``index``, of one element: at one of its keys."""

    over: StoredKV
    index: Node
    token: Node


def read_beside_exact_key(site: Site) -> Site | None:
    """``site`` over the numbers that its K and V are dequantised from, but for one token that is written over both;
    None where there is no such token, or the attention cannot be parted.

    Raises:
        Refused: the layout of the numbers is.
    """
    if not may_be_parted(site) or is_symbolic(site.kv_len):
        return None
    key, value = _written(site.key), _written(site.value)
    if key is None or value is None or value_number(key.index) != value_number(value.index):
        return None
    graph = site.anchor.graph

    def merge(out: Node, lse: Node) -> Node:
        new_key, new_value = (permute(graph, one.token, list(one.over.order)) for one in (key, value))
        return merged_with(site, out, lse, new_key, new_value, _seen_at(site, key.index))

    return read_numbers_beside(site, key.over, value.over, _mask_without(site, key.index), merge)


def _written(stored: StoredKV) -> _Written | None:
    """Of one element of one dimension, which is that of keys: then no two writes can meet."""
    node = stored.base
    if node.target is not aten.index_put.default or len(node.args) > 3 or node.kwargs:
        return None
    over, indices, token = node.args[:3]
    at = stored.order[_LENGTH]
    given: Any = indices
    if [d for d, index in enumerate(given) if index is not None] != [at]:
        return None
    index = given[at]
    shape = [1 if d == at else size for d, size in enumerate(shape_of(node))]
    is_whole = len(shape_of(token)) == len(shape) and all(map(same, shape_of(token), shape))
    if index.meta["val"].dtype is not torch.int64 or list(shape_of(index)) != [1] or not is_whole:
        return None
    return _Written(StoredKV(over, stored.order), index, token)  # type: ignore[arg-type]


def _mask_without(site: Site, index: Node) -> Node:
    """The site's mask with the key at ``index`` hidden, made where the first site with that mask is met."""
    kv_len = int(site.kv_len)
    known: dict[Any, Node] = kept_with(site.anchor.graph, "masks without a key", dict)
    name = (None if site.mask is None else value_number(site.mask), value_number(index), kv_len)
    if name not in known or known[name]._erased:
        operands = [index] if site.mask is None else [index, site.mask]
        known[name] = inline(site.anchor.graph, site.met_at, lambda *given: hide(kv_len, *given), operands)
    return known[name]


def hide(kv_len: int, index: Tensor, mask: Tensor | None = None) -> Tensor:
    """A bool mask of at most four dimensions, with the key at ``index`` (1,), which may count from the end, hidden."""
    others = torch.arange(kv_len, device=index.device) != torch.where(index < 0, index + kv_len, index)
    return others[None, None, None] if mask is None else mask & others


def _seen_at(site: Site, index: Node) -> Node | None:
    kv_len = int(site.kv_len)
    if site.mask is None:
        return None

    def seen(mask: Tensor, index: Tensor) -> Tensor:
        return mask.expand(*mask.shape[:-1], kv_len)[..., index]

    return inline(site.anchor.graph, site.anchor, seen, [site.mask, index])
