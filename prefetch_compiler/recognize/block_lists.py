"""K and V of which each head has picked blocks: ``blocks.gather(2, picked)``, as sparse decoding does.

A list (batch, kv_heads, picked) of blocks of keys, or of single keys, is a page table of every KV head's own: with the
heads in the batch, the cache is a pool whose pages are its blocks, and only those that are listed are read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from ..spec import PAGE_SIZES
from .axes import shape_of
from .folding import folded_mask, folded_rows, unfolded
from .site import Pages, Site, describe_site
from .sizes import is_symbolic, same
from .trace import inline, insert_call
from .value_numbers import value_number
from .views import Atom, NotRepresentable, StoredKV, aten, chain_of, head_source, replay_chain, single_source

_BATCH, _HEAD, _LIST = range(3)


@dataclass(frozen=True)
class _Picked:
    """``blocks`` (batch, kv_heads, blocks, [keys of a block,] dim), of which ``listed`` (batch, kv_heads, picked, 1,
    ...) are picked."""

    blocks: Node
    listed: Node

    @property
    def page_size(self) -> int:
        shape = shape_of(self.blocks)
        return int(shape[3]) if len(shape) == 5 else 1


def read_by_lists(site: Site) -> Site | None:
    """``site`` with the KV heads in its batch and its caches' blocks as pages; None where they are not picked like
    that, or lie in another order."""
    if site.is_causal or site.sink is not None or site.spec.cache is not None or site.pages is not None:
        return None
    if "q_len" in site.spec.symbolic or site.spec.lse:
        return None
    try:
        key, value = _picked(site.key), _picked(site.value)
    except NotRepresentable:
        return None
    if value_number(key.listed) != value_number(value.listed) or key.page_size != value.page_size:
        return None
    if not same(shape_of(key.blocks)[_LIST], shape_of(value.blocks)[_LIST]):
        return None
    if not all(same(shape_of(one.listed)[_BATCH], shape_of(site.q)[0]) for one in (key, value)):
        return None  # one sequence's blocks serve all
    graph = site.anchor.graph
    table = inline(graph, site.met_at, _table, [key.listed, key.blocks])
    with graph.inserting_before(site.anchor):
        v = _pool(value)
        q = folded_rows(graph, site.q, site.spec.group)
    with graph.inserting_before(site.met_at):
        k = _pool(key)
        mask = None if site.mask is None else folded_mask(graph, site.mask, site)
    pages = Pages(table, key.page_size)
    spec = describe_site(q, k, v, mask, False, site.scale, True, softcap=site.spec.softcap, pages=pages)
    return replace(
        site, q=q, key=k, value=v, mask=mask, pages=pages, spec=spec, heads_first=True,
        restore=lambda result: unfolded(site, graph, result),
    )  # fmt: skip


def _picked(stored: StoredKV) -> _Picked:
    """Raises:
    NotRepresentable: it is not picked by lists of heads; or the blocks do not follow one another in memory.
    """
    chain = chain_of(stored.base)
    gathering = chain[-1]
    if gathering.target is not aten.gather.default:
        raise NotRepresentable
    blocks, dim, index = gathering.args[:3]
    shape = shape_of(blocks)
    if len(shape) not in (4, 5) or dim != _LIST or any(is_symbolic(size) for size in shape[3:]):
        raise NotRepresentable
    dims = replay_chain([[Atom(d, size)] for d, size in enumerate(shape_of(gathering))], chain[:-1])
    batch, heads, length, last = (dims[d] for d in stored.order)
    in_order = [atom.source for atom in length if not same(atom.size, 1)]
    expected = [d for d in range(_LIST, len(shape) - 1) if not same(shape_of(gathering)[d], 1)]
    heads_at, batch_at = head_source(heads), single_source(batch)
    if in_order != expected or single_source(last) != len(shape) - 1:
        raise NotRepresentable
    if heads_at != (None if same(shape[_HEAD], 1) else _HEAD) or batch_at != (
        None if same(shape[_BATCH], 1) else _BATCH
    ):
        raise NotRepresentable
    picked = _Picked(blocks, _list_of(index, shape))  # type: ignore[arg-type]
    if picked.page_size not in PAGE_SIZES or not _follow_one_another(picked.blocks.meta["val"]):
        raise NotRepresentable
    return picked


def _list_of(index: Node, blocks: torch.Size) -> Node:
    """(batch, kv_heads, picked, 1, ...), which ``index`` repeats for whole blocks.

    Raises:
        NotRepresentable: it picks other keys of a block for other channels.
    """
    if index.target is aten.remainder.Scalar and index.args[1] == blocks[_LIST]:
        # take_along_dim counts negative ones from the end, as the table does below.
        index = index.args[0]  # type: ignore[assignment]
    if index.target is not aten.expand.default:
        raise NotRepresentable
    source: Node = index.args[0]  # type: ignore[assignment]
    shape, wide = shape_of(source), shape_of(index)
    whole = len(shape) == len(blocks) and all(same(size, 1) for size in shape[_LIST + 1 :])
    if not whole or not all(same(a, b) for a, b in zip(shape[: _LIST + 1], wide, strict=False)):
        raise NotRepresentable
    return source


def _follow_one_another(blocks: torch.Tensor) -> bool:
    """Whether all blocks of all heads lie one behind the other, rows of a block too."""
    if not same(blocks.stride(-1), 1):
        return False
    return all(
        same(blocks.shape[dim], 1) or same(blocks.stride(dim), blocks.shape[dim + 1] * blocks.stride(dim + 1))
        for dim in (_BATCH, _HEAD)
    )


def _table(listed: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """(batch * kv_heads, picked): the blocks of a head are counted from those of all heads before it."""
    batch, heads, count = blocks.shape[:3]
    first = torch.arange(batch * heads, device=listed.device).view(batch, heads, 1) * count
    return (listed.flatten(_LIST).remainder(count) + first).flatten(0, 1)


def _pool(picked: _Picked) -> StoredKV:
    """(blocks of all heads, 1, keys of a block, dim)."""
    graph, shape = picked.blocks.graph, shape_of(picked.blocks)
    sizes = [-1, 1, picked.page_size, int(shape[-1])]
    return StoredKV(insert_call(graph, aten.view.default, picked.blocks, sizes), (0, 1, 2, 3))
