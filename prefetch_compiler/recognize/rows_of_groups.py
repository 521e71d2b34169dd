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
from .reshape import SizeArgument
from .sizes import Size, is_symbolic, same
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
    whole, (rows, group) = shape_of(node), shape_of(source)
    if len(whole) != 4 or is_symbolic(group) or is_symbolic(whole[3]) or int(whole[3]) % int(group):
        return node
    *outer, _ = _sizes(node)
    graph, groups = node.graph, int(whole[3]) // int(group)
    with graph.inserting_before(node):
        try:
            apart = _apart(graph, source, rows, outer, groups, int(group))
        except NotRepresentable:
            return node
        return insert_call(graph, aten.view.default, apart, [*outer, int(whole[3])])


def _sizes(view: Node) -> list[SizeArgument]:
    """Of a view, as it is given them: what is symbolic is a node, or what is left."""
    given: Any = view.args[1]
    return [one if is_symbolic(size) else int(size) for one, size in zip(given, shape_of(view), strict=True)]


def _apart(graph: Graph, node: Node, rows: Size, outer: list[SizeArgument], groups: int, group: int) -> Node:
    """``node`` (rows, 1|group) as (batch, heads, len, groups, 1|group), the first three of sizes ``outer``.

    Raises:
        NotRepresentable: it is not computed of numbers and of operands for each row.
    """
    have = shape_of(node)
    if len(have) != 2 or not same(have[0], rows):
        raise NotRepresentable
    if same(have[1], 1) and group > 1:
        if not node.meta["val"].is_contiguous():
            raise NotRepresentable
        return insert_call(graph, aten.view.default, node, [*outer, groups, 1])
    if not same(have[1], group):
        raise NotRepresentable
    if node.meta["val"].dtype in QUANTISED_FORMATS:
        if not node.meta["val"].is_contiguous():
            raise NotRepresentable
        # As the cache is shaped, and so what a kernel reads.
        cache = insert_call(graph, aten.view.default, node, [*outer, groups * group])
        return insert_call(graph, aten.view.default, cache, [*outer, groups, group])
    if node.target not in (*_CHANGES, *CONVERSIONS) or node.kwargs:
        raise NotRepresentable
    operands = [_apart(graph, one, rows, outer, groups, group) if isinstance(one, Node) else one for one in node.args]
    return insert_call(graph, node.target, *operands)
