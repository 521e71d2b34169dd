"""Caches that were flattened to be dequantised: ``(numbers * scale - shift).view(k.shape)``, a group in each row, and a
scale and a shift (rows, 1), as optimum-quanto has them.

What a row is of the cache, such a scale does not say; so the same is computed of views that do, (batch, heads, len,
groups, numbers of a group), which nobody needs if the cache is not read so.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from ..spec import QUANTISED_FORMATS
from .axes import CONVERSIONS, shape_of
from .sizes import is_symbolic
from .trace import insert_call
from .views import NotRepresentable, aten

_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_CHANGES = (
    aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.add.Tensor, aten.add.Scalar,
    aten.sub.Tensor, aten.sub.Scalar,
)  # fmt: skip


def with_groups_apart(node: Node) -> Node:
    """The same as ``node``, in nodes before it where it is a view of dequantised rows of groups, else ``node``."""
    if node.target in CONVERSIONS and isinstance(node.args[0], Node) and not node.kwargs:
        apart = with_groups_apart(node.args[0])
        if apart is node.args[0]:
            return node
        with node.graph.inserting_before(node):
            return insert_call(node.graph, node.target, apart, *node.args[1:])
    source: Any = node.args[0] if node.target in _VIEWS else None
    if source is None or len(shape_of(source)) != 2 or source.target not in (*_CHANGES, *CONVERSIONS):
        return node
    whole = shape_of(node)
    if any(is_symbolic(size) for size in (*whole, *shape_of(source))):
        return node
    rows, group = (int(size) for size in shape_of(source))
    *outer, dim = (int(size) for size in whole)
    if len(whole) != 4 or dim % group:
        return node
    graph = node.graph
    with graph.inserting_before(node):
        try:
            apart = _apart(graph, source, rows, [*outer, dim // group, group])
        except NotRepresentable:
            return node
        return insert_call(graph, aten.view.default, apart, [*outer, dim])


def _apart(graph: Graph, node: Node, rows: int, shape: list[int]) -> Node:
    """``node`` (rows, 1|group) as (batch, heads, len, groups, 1|group).

    Raises:
        NotRepresentable: it is not computed of numbers and of operands for each row.
    """
    *outer, groups, group = shape
    if list(shape_of(node)) == [rows, 1] and group > 1:
        if not node.meta["val"].is_contiguous():
            raise NotRepresentable
        return insert_call(graph, aten.view.default, node, [*outer, groups, 1])
    if list(shape_of(node)) != [rows, group]:
        raise NotRepresentable
    if node.meta["val"].dtype in QUANTISED_FORMATS:
        if not node.meta["val"].is_contiguous():
            raise NotRepresentable
        # As the cache is shaped, and so what a kernel reads.
        cache = insert_call(graph, aten.view.default, node, [*outer, groups * group])
        return insert_call(graph, aten.view.default, cache, shape)
    if node.target not in (*_CHANGES, *CONVERSIONS) or node.kwargs:
        raise NotRepresentable
    operands = [_apart(graph, one, rows, shape) if isinstance(one, Node) else one for one in node.args]
    return insert_call(graph, node.target, *operands)
