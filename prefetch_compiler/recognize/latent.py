"""K and V that the graph expands from latents: multi-head latent attention, read in its absorbed form.

K's columns are, for each head, a linear map of one latent that all heads share, beside rotary keys that all heads
share as they are; V's are another linear map of the same latent (arXiv 2405.04434, section 2.1.2). Then

    q_nope . (W_UK latent) = (q_nope W_UK) . latent        sum p (W_UV latent) = W_UV (sum p latent)

so that a small product by head takes queries to latents before the attention, and another its result back, and nothing
of the length of the cache is expanded. A model that has these products itself, with K the latents beside the rotary
keys, and V the latents again, is read the same without them.

Every column of K and V must be accounted for; where one is not, the site is read some other way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Graph, Node

from ..spec import MAX_LATENT_DIM, ROPE_DIMS
from .axes import Axis, Dims, Group, shape_of
from .columns import Columns, Made, joined, sources, top
from .reshape import contiguous, permute, reshape, size_argument
from .site import Site, describe_site
from .sizes import same
from .trace import insert_call
from .value_numbers import value_number
from .views import StoredKV, aten

_AS_IT_IS = (0, 1, 2, 3)


@dataclass(frozen=True)
class _Operand:
    """K or V, whose dimensions are these axes, or nothing where of size 1."""

    batch: Group
    heads: Group
    keys: Group
    columns: list[Columns]


@dataclass(frozen=True)
class _Projection:
    """Columns that are, for each head, the products of ``latent`` with rows of ``weight``.

    Attributes:
        latent: the latents and rotary keys of nobody's own: made of batch, keys and ``summed`` alone.
        weight: made of heads, the columns' axis and ``summed``.
    """

    columns: Columns
    latent: Made
    weight: Made
    summed: Axis

    def weights(self, graph: Graph, heads: Group) -> Node:
        """(heads, columns, latent columns): a view."""
        of_all = Columns(self.weight, self.columns.axis, self.columns.first, self.columns.width)
        return of_all.as_dims(graph, [heads, [self.columns.axis], [self.summed]], 1)


def read_as_latent(site: Site) -> Site | None:
    """``site`` over the latents that its K and V are made of; None where they are not. Whether a kernel serves that is
    for selection to say. What it needs is put into the graph.

    Raises:
        Refused: ``describe_site`` refuses the latents' layout.
    """
    if site.spec.cache is not None or site.pages is not None or site.spec.lse:
        return None
    key, value = _operand(site.key), _operand(site.value)
    if key is None or value is None:
        return None
    projected = [_projection(columns, key) for columns in key.columns]
    if any(found is not None for found in projected):
        return _expanded(site, key, value, projected)
    return _absorbed(site, key, value)


def _operand(stored: StoredKV) -> _Operand | None:
    """What K or V is made of; None where it has a single key."""
    shape = shape_of(stored.base)
    groups: list[Group] = [[] if same(shape[dim], 1) else [Axis(shape[dim])] for dim in stored.order]
    batch, heads, keys, columns = groups
    if not keys or not columns:
        return None
    dims: Dims = [[] for _ in groups]
    for dim, group in zip(stored.order, groups, strict=True):
        dims[dim] = group
    whole = Columns(Made(stored.base, dims), columns[0], 0, int(shape[stored.order[3]]))
    return _Operand(batch, heads, keys, joined(sources(whole)))


def _projection(columns: Columns, operand: _Operand) -> _Projection | None:
    node, dims = columns.made.node, columns.made.dims
    if node.target not in (aten.mm.default, aten.bmm.default):
        return None
    left, right = node.args[:2]
    summed = Axis(int(shape_of(left)[-1]))
    *lead, rows, across = dims
    factors = [Made(left, [*lead, rows, [summed]]), Made(right, [*lead, [summed], across])]  # type: ignore[arg-type]
    if operand.keys[0] in across:
        factors.reverse()
    latent, weight = (top(factor) for factor in factors)
    if not {*operand.keys, summed} <= latent.axes <= {*operand.batch, *operand.keys, summed}:
        return None  # the heads have latents of their own
    if weight.axes != {*operand.heads, columns.axis, summed}:
        return None
    return _Projection(columns, latent, weight, summed)


def _expanded(site: Site, key: _Operand, value: _Operand, projected: list[_Projection | None]) -> Site | None:
    """The site with products before and after, where each query head has keys and values of its own."""
    if len(value.columns) != 1 or site.spec.kv_heads != site.spec.query_heads:
        return None
    if len(key.columns) != 2 or None not in projected:
        return None
    at = 1 if projected[0] is None else 0
    of_keys, of_values = projected[at], _projection(value.columns[0], value)
    rotary = key.columns[1 - at]
    if of_keys is None or of_values is None or not _is_shared(rotary, key):
        return None
    same_latents = _same_tensors(
        of_keys.latent, _roles(key, of_keys.summed), of_values.latent, _roles(value, of_values.summed)
    )
    if not same_latents or not _fits(of_keys.summed.size, rotary.width):
        return None
    graph = site.anchor.graph
    with graph.inserting_before(site.anchor):
        latent = of_keys.latent.as_dims(graph, [key.batch, key.heads, key.keys, [of_keys.summed]])
        up, down = of_keys.weights(graph, key.heads), of_values.weights(graph, value.heads)
        if not _same_dtypes(site.q, latent, rotary.made.node, up, down):
            return None
        ours, others = _split_queries(graph, site.q, key.columns, at)
        q_latent = _by_head(graph, ours, up)
        q = insert_call(graph, aten.cat.default, [q_latent, others], -1)
        rope = rotary.as_dims(graph, [key.batch, key.heads, key.keys, [rotary.axis]], 3)
        by_columns = permute(graph, down, [0, 2, 1])

    def restore(result: Node) -> Node:
        rows = _by_head(graph, result, by_columns)
        order = [0, 1, 2, 3] if site.heads_first else [0, 2, 1, 3]
        return site.restore(permute(graph, contiguous(graph, permute(graph, rows, order)), order))

    return replace(_over(site, q, latent, rope), restore=restore)


def _absorbed(site: Site, key: _Operand, value: _Operand) -> Site | None:
    """The site of a model that has the products itself: all query heads share K and V."""
    if key.heads or value.heads or len(value.columns) != 1:
        return None
    (latents,) = value.columns
    columns = _beside(key, latents, value)
    at = next((at for at, part in enumerate(columns) if _same_columns(part, key, latents, value)), None)
    if at is None or len(columns) != 2 or not all(_is_shared(part, key) for part in columns):
        return None
    rotary = columns[1 - at]
    if not _fits(latents.width, rotary.width):
        return None
    graph = site.anchor.graph
    with graph.inserting_before(site.anchor):
        latent, rope = (
            part.as_dims(graph, [key.batch, key.heads, key.keys, [part.axis]], 3) for part in (columns[at], rotary)
        )
        if not _same_dtypes(site.q, latent, rope):
            return None
        q = site.q
        if at == 1:
            q = insert_call(graph, aten.cat.default, list(_split_queries(graph, q, columns, at)), -1)
    return _over(site, q, latent, rope)


def _beside(key: _Operand, latents: Columns, value: _Operand) -> list[Columns]:
    """K's columns, with the latents by themselves where K is one tensor that begins or ends with them."""
    if len(key.columns) != 1:
        return key.columns
    (whole,) = key.columns
    rest = whole.width - latents.width
    if rest <= 0:
        return key.columns
    first, last = (replace(whole, width=width) for width in (latents.width, rest))
    begins = [first, replace(last, first=whole.first + latents.width)]
    if _same_columns(first, key, latents, value):
        return begins
    return [last, replace(first, first=whole.first + rest)]


def _same_columns(one: Columns, key: _Operand, other: Columns, value: _Operand) -> bool:
    """Whether both are the same columns of the same tensor, whose dimensions mean the same."""
    return (one.first, one.width) == (other.first, other.width) and _same_tensors(
        one.made, _roles(key, one.axis), other.made, _roles(value, other.axis)
    )


def _is_shared(columns: Columns, operand: _Operand) -> bool:
    """Whether columns are the same for all heads."""
    return columns.made.axes <= {*operand.batch, *operand.keys, columns.axis} and operand.keys[0] in columns.made.axes


def _same_tensors(one: Made, roles: dict[Axis, str], other: Made, other_roles: dict[Axis, str]) -> bool:
    named = [
        [[names.get(axis) for axis in group] for group in made.dims]
        for made, names in ((one, roles), (other, other_roles))
    ]
    return named[0] == named[1] and value_number(one.node) == value_number(other.node)


def _roles(operand: _Operand, columns: Axis) -> dict[Axis, str]:
    """What the axes of K and those of V are alike."""
    groups = (("batch", operand.batch), ("heads", operand.heads), ("keys", operand.keys), ("columns", [columns]))
    return {axis: name for name, group in groups for axis in group}


def _fits(latent_dim: Any, rope_dim: int) -> bool:
    return int(latent_dim) <= MAX_LATENT_DIM and rope_dim in ROPE_DIMS


def _same_dtypes(*nodes: Node) -> bool:
    return len({node.meta["val"].dtype for node in nodes}) == 1


def _split_queries(graph: Graph, q: Node, columns: list[Columns], at: int) -> tuple[Node, Node]:
    """The queries' columns that meet those ``at`` of K, and those that meet the others."""
    begins = [0, columns[0].width]
    both = [
        insert_call(graph, aten.slice.Tensor, q, 3, begin, begin + part.width)
        for begin, part in zip(begins, columns, strict=True)
    ]
    return both[at], both[1 - at]


def _by_head(graph: Graph, rows: Node, weight: Node) -> Node:
    """(batch, heads, q, m) times (heads, m, n): (batch, heads, q, n), in any memory order."""
    batch, q_len = size_argument(graph, rows, 0), size_argument(graph, rows, 2)
    heads, inner, outer = (int(size) for size in shape_of(weight))
    flat = reshape(graph, permute(graph, rows, [1, 0, 2, 3]), [heads, -1, inner])
    products = insert_call(graph, aten.bmm.default, flat, weight)
    return permute(graph, reshape(graph, products, [heads, batch, q_len, outer]), [1, 0, 2, 3])


def _over(site: Site, q: Node, latent: Node, rope: Node) -> Site:
    """``site`` with these queries over latents and rotary keys, (1|batch, 1, keys, columns) each."""
    held, beside = StoredKV(latent, _AS_IT_IS), StoredKV(rope, _AS_IT_IS)
    spec = describe_site(
        q, held, held, site.mask, site.is_causal, site.scale, site.heads_first,
        softcap=site.spec.softcap, has_sink=site.sink is not None, rope=beside,
    )  # fmt: skip
    return replace(site, q=q, key=held, value=held, rope=beside, spec=spec)
