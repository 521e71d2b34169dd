"""K and V that the graph gathers from pages: which pools, by which table?

``pool[table]`` copies what all sequences may hold, each step. A table of pages (batch, pages of a sequence) that
indexes one dimension of K's pool and of V's, or its flattened form, is handed to the kernel instead; pages of one key
are a mapping of slots. The views after the gathering say which dimension of a pool is what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from ..spec import PAGE_SIZES
from .axes import shape_of
from .reshape import permute
from .site import Pages, Site, describe_site
from .sizes import is_symbolic, same
from .trace import insert_call
from .value_numbers import value_number
from .views import Atom, Dims, NotRepresentable, StoredKV, aten, chain_of, head_source, replay_chain, single_source

# Dimensions of a table, as sources of a gathered tensor's atoms; those of the pool follow.
_SEQUENCE, _PAGE = 0, 1
_TABLE_DIMENSIONS = 2


@dataclass(frozen=True)
class _Gathered:
    """What ``pool`` (pages at dimension ``at``), its numbers ``seen_as`` another dtype or not, is gathered to by
    ``table`` (batch, pages of a sequence)."""

    pool: Node
    at: int
    table: Node
    seen_as: torch.dtype | None = None

    def of_pool(self, source: int) -> int:
        """The pool's dimension that an atom stands for."""
        dim = source - _TABLE_DIMENSIONS
        return dim if dim < self.at else dim + 1


def read_as_paged(site: Site) -> Site | None:
    """``site`` over the pools that its K and V are gathered from; None where they are not, or in a way that is not
    understood. Whether a kernel serves that is for selection to say. What it needs is put into the graph.

    Raises:
        Refused: ``describe_site`` refuses the pools' layout.
    """
    try:
        key, value = _pool_of(site.key, site.met_at), _pool_of(site.value, site.anchor)
        gathered, pool_key, page_size = key
        if not _same_table(gathered, value[0]) or value[2] != page_size:
            return None
        if not same(shape_of(gathered.table)[_SEQUENCE], shape_of(site.q)[0]):
            return None  # one sequence's pages serve all
        key_scale, value_scale, key_zero, value_zero = (
            _scale_pool(site, one, gathered)
            for one in (site.key_scale, site.value_scale, site.key_zero, site.value_zero)
        )
    except NotRepresentable:
        return None
    pages = Pages(gathered.table, page_size)
    spec = describe_site(
        site.q, pool_key, value[1], site.mask, site.is_causal, site.scale, site.heads_first,
        softcap=site.spec.softcap, has_sink=site.sink is not None, has_lse=site.spec.lse, cache=site.spec.cache,
        pages=pages,
    )  # fmt: skip
    return replace(
        site, key=pool_key, value=value[1], key_scale=key_scale, value_scale=value_scale, key_zero=key_zero,
        value_zero=value_zero, pages=pages, spec=spec,
    )  # fmt: skip


def _pool_of(stored: StoredKV, before: Node) -> tuple[_Gathered, StoredKV, int]:
    """What a site's K or V is gathered by, its pool, and keys of a page. Views of the pool are put before ``before``.

    Raises:
        NotRepresentable: it is not gathered; or not by sequence and key; or pages of such a size are not served.
    """
    gathered, dims = _dims_of(stored.base)
    batch, heads, length, dim = (dims[d] for d in stored.order)
    page_at = _page_dimension(gathered, batch, length)
    head_at, dim_at = head_source(heads), single_source(dim)
    if dim_at is None:
        raise NotRepresentable
    shape = shape_of(gathered.pool)
    found = {gathered.at, gathered.of_pool(dim_at)}
    found |= {gathered.of_pool(source) for source in (head_at, page_at) if source is not None}
    spare = [d for d in range(len(shape)) if d not in found]
    if any(not same(shape[d], 1) for d in spare):
        raise NotRepresentable

    def dimension(source: int | None) -> int | None:
        if source is not None:
            return gathered.of_pool(source)
        return spare.pop(0) if spare else None

    order = [gathered.at, dimension(head_at), dimension(page_at), gathered.of_pool(dim_at)]
    if spare:
        raise NotRepresentable
    page_size = 1 if page_at is None else shape[gathered.of_pool(page_at)]
    if is_symbolic(page_size) or int(page_size) not in PAGE_SIZES:
        raise NotRepresentable
    pool, whole = _four_dimensional(gathered, order, before)
    if not same(pool.meta["val"].stride(whole[3]), 1):
        raise NotRepresentable
    return gathered, StoredKV(pool, whole), int(page_size)


def _four_dimensional(gathered: _Gathered, order: Sequence[int | None], before: Node) -> tuple[Node, tuple[int, ...]]:
    """The pool with a dimension of one element for each that it lacks, and the order of (page, head, key, dim)."""
    graph, pool, given = before.graph, gathered.pool, len(shape_of(gathered.pool))
    complete: list[int] = []
    with graph.inserting_before(before):
        if gathered.seen_as is not None:
            pool = insert_call(graph, aten.view.dtype, pool, gathered.seen_as)
        for dim in order:
            if dim is None:
                pool = insert_call(graph, aten.unsqueeze.default, pool, given)
                dim, given = given, given + 1
            complete.append(dim)
    if given != len(order):
        raise NotRepresentable
    return pool, tuple(complete)


def _scale_pool(site: Site, scale: Node | None, by: _Gathered) -> Node | None:
    """The pool of a scale of tokens, (pages, 1|kv_heads, page_size); other scales are as they are.

    Raises:
        NotRepresentable: a scale differs between sequences, and is not gathered as K and V are.
    """
    if scale is None or all(same(shape_of(scale)[dim], 1) for dim in (0, 2)):
        return scale
    if len(shape_of(scale)) != 3:
        raise NotRepresentable  # of groups, which no kernel takes in pages
    gathered, dims = _dims_of(scale)
    if not _same_table(gathered, by):
        raise NotRepresentable
    batch, heads, length = dims
    page_at, head_at = _page_dimension(gathered, batch, length), single_source(heads)
    order = [gathered.at]
    order += [gathered.of_pool(source) for source in (head_at, page_at) if source is not None]
    graph, shape = site.anchor.graph, shape_of(gathered.pool)
    spare = [d for d in range(len(shape)) if d not in order]
    if any(not same(shape[d], 1) for d in spare):
        raise NotRepresentable
    with graph.inserting_before(site.anchor):
        pool = permute(graph, gathered.pool, [*order, *spare])
        if spare:
            pool = insert_call(graph, aten.squeeze.dims, pool, list(range(len(order), len(shape))))
        if head_at is None:
            pool = insert_call(graph, aten.unsqueeze.default, pool, 1)
        if page_at is None:
            pool = insert_call(graph, aten.unsqueeze.default, pool, 2)
    return pool


def _page_dimension(gathered: _Gathered, batch: list[Atom], length: list[Atom]) -> int | None:
    """The source of keys inside a page, None where a page is one key.

    Raises:
        NotRepresentable: batch and length are not those of the table, in the order of its pages' keys.
    """
    sequences, pages = shape_of(gathered.table)
    if single_source(batch) not in ((_SEQUENCE,) if not same(sequences, 1) else (None,)):
        raise NotRepresentable
    sources = [atom.source for atom in length if not same(atom.size, 1)]
    if not same(pages, 1):
        if sources[:1] != [_PAGE]:
            raise NotRepresentable
        sources = sources[1:]
    if len(sources) > 1 or (sources and (sources[0] is None or sources[0] < _TABLE_DIMENSIONS)):
        raise NotRepresentable
    return sources[0] if sources else None


def _dims_of(operand: Node) -> tuple[_Gathered, Dims]:
    """What a tensor is gathered by, and what its dimensions are made of.

    Raises:
        NotRepresentable: it is not, or views mix its dimensions.
    """
    chain = chain_of(operand)
    seen_as: torch.dtype | None = None
    if chain[-1].target is aten.view.dtype and _as_wide(chain[-1]):
        # fp8 is often gathered as bytes, which every device can index.
        *views, reinterpreted = chain
        seen_as = reinterpreted.meta["val"].dtype
        chain = [*views, *chain_of(reinterpreted.args[0])]  # type: ignore[arg-type]
    gathering = chain[-1]
    if gathering.target is not aten.index.Tensor:
        raise NotRepresentable
    pool, indices = gathering.args
    given = [at for at, index in enumerate(indices) if index is not None]  # type: ignore[arg-type]
    if len(given) != 1 or not isinstance(pool, Node):
        raise NotRepresentable
    at = given[0]
    index = indices[at]  # type: ignore[index]
    if not isinstance(index, Node) or index.meta["val"].dtype.is_floating_point or index.meta["val"].dtype.itemsize < 4:
        raise NotRepresentable  # a mask of bools selects, and does not gather
    table, folded = _table_of(index)
    rest = [dim for dim in range(len(shape_of(pool))) if dim != at]
    kept = [[Atom(_TABLE_DIMENSIONS + number, shape_of(pool)[dim])] for number, dim in enumerate(rest)]
    by_table = [[Atom(dim, size)] for dim, size in enumerate(shape_of(table))]
    if folded:
        by_table = [[atom for atoms in by_table for atom in atoms]]
    dims: Dims = [*kept[:at], *by_table, *kept[at:]]
    return _Gathered(pool, at, table, seen_as), replay_chain(dims, chain[:-1])


def _as_wide(node: Node) -> bool:
    source: Node = node.args[0]  # type: ignore[assignment]
    return bool(source.meta["val"].dtype.itemsize == node.meta["val"].dtype.itemsize)


def _table_of(index: Node) -> tuple[Node, bool]:
    """A table of two dimensions, and whether ``index`` is the same in one.

    Raises:
        NotRepresentable: there is none.
    """
    if len(shape_of(index)) == _TABLE_DIMENSIONS:
        return index, False
    views = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
    if len(shape_of(index)) == 1 and index.target in views and len(shape_of(index.args[0])) == _TABLE_DIMENSIONS:
        return index.args[0], True  # type: ignore[return-value]
    raise NotRepresentable


def _same_table(one: _Gathered, other: _Gathered) -> bool:
    """Whether two pools are gathered alike, page by page."""
    pages, of_other = shape_of(one.pool)[one.at], shape_of(other.pool)[other.at]
    return same(pages, of_other) and value_number(one.table) == value_number(other.table)
