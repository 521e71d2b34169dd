"""What the columns of an operand are made of: which other tensors, side by side.

``cat``, slices, ``split`` and writes into an empty tensor put columns together and take them apart; views, copies and
broadcasts are between. Every dimension is an ordered product of axes (see ``axes``), and all of it is replayed
towards the tensors that the columns come from.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Graph, Node

from .axes import CONVERSIONS, Axis, Dims, Group, shape_of
from .reshape import spread
from .sizes import Size, is_symbolic, product, same
from .trace import insert_call
from .views import aten

_VIEWS = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
_COPIES = (aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default)
_SPLITS = (aten.split_with_sizes.default, aten.split.Tensor)
_SCATTER = aten.slice_scatter.default


@dataclass(frozen=True)
class Made:
    """``node``, each of whose dimensions is made of a group of ``dims``."""

    node: Node
    dims: Dims

    @property
    def axes(self) -> set[Axis]:
        return {axis for group in self.dims for axis in group}

    def as_dims(self, graph: Graph, order: Sequence[Group]) -> Node:
        """The tensor with a dimension for each group of ``order``, of size 1 where it has none of its axes.

        Raises:
            Refused: it has others.
        """
        return spread(graph, self.node, self.dims, order)


@dataclass(frozen=True)
class Columns:
    """Of ``made``, those from ``first`` on of the dimension that ``axis`` belongs to."""

    made: Made
    axis: Axis
    first: int
    width: int

    def as_dims(self, graph: Graph, order: Sequence[Group], at: int) -> Node:
        """These columns, with dimensions as in ``Made.as_dims``; they are its dimension ``at``."""
        tensor = self.made.as_dims(graph, order)
        if self.width == self.axis.size:
            return tensor
        return insert_call(graph, aten.slice.Tensor, tensor, at, self.first, self.first + self.width)


def top(made: Made) -> Made:
    """The farthest tensor up the views, copies and broadcasts of ``made`` that holds the same."""
    while (above := _above(made)) is not None:
        made = above
    return made


def sources(columns: Columns) -> Iterator[Columns]:
    """The columns of other tensors that ``columns`` are, in order, each as far up as is understood."""
    parts = _parts(columns)
    while len(parts) == 1 and parts[0] is not columns:
        (columns,) = parts
        parts = _parts(columns)
    if len(parts) <= 1:
        yield columns
        return
    for part in parts:
        yield from sources(part)


def joined(found: Iterable[Columns]) -> list[Columns]:
    """Neighbours that are neighbours in one tensor too, as one."""
    result: list[Columns] = []
    for columns in found:
        last = result[-1] if result else None
        if last is not None and last.made.node is columns.made.node and last.first + last.width == columns.first:
            result[-1] = replace(last, width=last.width + columns.width)
        else:
            result.append(columns)
    return result


def _parts(columns: Columns) -> list[Columns]:
    """What ``columns`` are put together from, one step up; themselves where that is not understood."""
    made, axis = columns.made, columns.axis
    node = made.node
    at = next((dim for dim, group in enumerate(made.dims) if group == [axis]), None)
    if at is not None:
        if node.target is aten.cat.default and _dim_argument(node, 1) == at:
            return list(_of_cat(columns, at)) or [columns]
        if node.target is _SCATTER and _dim_argument(node, 2) == at:
            return list(_of_scatter(columns, at)) or [columns]
        start = _slice_start(node, at)
        if start is not None:
            whole = node.args[0] if node.target is aten.slice.Tensor else node.args[0].args[0]  # type: ignore[union-attr]
            return [_within(columns, whole, at, columns.first + start, columns.width)]
    above = _converted(made) or _above(made)
    if above is None or axis not in above.axes:
        return [columns]
    return [replace(columns, made=above)]


def _within(columns: Columns, node: Any, at: int, first: int, width: int) -> Columns:
    """Columns of a tensor that differs in its dimension ``at`` alone."""
    axis = Axis(int(shape_of(node)[at]))
    dims = [[axis] if dim == at else group for dim, group in enumerate(columns.made.dims)]
    return Columns(Made(node, dims), axis, first, width)


def _of_cat(columns: Columns, at: int) -> Iterator[Columns]:
    parts: Any = columns.made.node.args[0]
    if any(is_symbolic(shape_of(part)[at]) for part in parts):
        return
    before, end = 0, columns.first + columns.width
    for part in parts:
        size = int(shape_of(part)[at])
        first, last = max(columns.first - before, 0), min(end - before, size)
        if first < last:
            yield _within(columns, part, at, first, last - first)
        before += size


def _of_scatter(columns: Columns, at: int) -> Iterator[Columns]:
    """``slice_scatter`` writes ``source`` over the columns [start, end) of ``whole``."""
    node = columns.made.node
    whole, source = node.args[:2]
    start, end, step = _slice_bounds(node.args[3:], int(shape_of(node)[at]))
    if step != 1:
        return
    first, last = columns.first, columns.first + columns.width
    ranges = (
        (whole, first, min(last, start), 0),
        (source, max(first, start), min(last, end), start),
        (whole, max(first, end), last, 0),
    )
    for into, begin, stop, offset in ranges:
        if begin < stop:
            yield _within(columns, into, at, begin - offset, stop - begin)


def _slice_start(node: Node, at: int) -> int | None:
    """Where a node that is some columns of another begins in it, if it is no more than that."""
    if node.target is aten.slice.Tensor and _dim_argument(node, 1) == at:
        start, _, step = _slice_bounds(node.args[2:], int(shape_of(node.args[0])[at]))
        return start if step == 1 else None
    if node.target is not operator.getitem:
        return None
    split: Any = node.args[0]
    number: Any = node.args[1]
    if split.target not in _SPLITS or _dim_argument(split, 2) != at:
        return None
    sizes = split.args[1]
    return int(number) * int(sizes) if isinstance(sizes, int) else int(sum(sizes[:number]))


def _slice_bounds(arguments: Sequence[Any], size: int) -> tuple[int, int, int]:
    start, end, step = [*arguments, None, None, None][:3]
    if not all(value is None or isinstance(value, int) for value in (start, end, step)):
        return 0, 0, 0  # no step that anything takes
    begin, stop, _ = slice(start, end).indices(size)
    return begin, stop, 1 if step is None else step


def _dim_argument(node: Node, at: int) -> int:
    """The dimension that a node's argument ``at`` names, 0 by default, counted from the first."""
    dim: Any = node.args[at] if len(node.args) > at else node.kwargs.get("dim", 0)
    whole: Any = node.args[0]
    rank = len(shape_of(whole[0] if isinstance(whole, list | tuple) else whole))
    return int(dim) % rank


def _converted(made: Made) -> Made | None:
    """What a conversion between floating-point dtypes converts. A kernel need not round as it does."""
    node = made.node
    if node.target not in CONVERSIONS:
        return None
    source: Any = node.args[0]
    both = (source.meta["val"].dtype, node.meta["val"].dtype)
    return Made(source, made.dims) if all(dtype.is_floating_point and dtype.itemsize > 1 for dtype in both) else None


def _above(made: Made) -> Made | None:
    """What a view, copy or broadcast is one of; None where the node is something else, or mixes axes."""
    node, dims = made.node, made.dims
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    source: Any = node.args[0]
    if node.target in _COPIES:
        return Made(source, dims)
    if node.target in _VIEWS:
        regrouped = _regrouped(dims, shape_of(source))
        return None if regrouped is None else Made(source, regrouped)
    if node.target is aten.permute.default:
        found: Dims = [[] for _ in dims]
        for position, dim in enumerate(node.args[1]):  # type: ignore[arg-type]
            found[dim] = dims[position]
        return Made(source, found)
    if node.target is aten.transpose.int:
        first, second = (int(dim) for dim in node.args[1:])  # type: ignore[arg-type]
        swapped = list(dims)
        swapped[first], swapped[second] = dims[second], dims[first]
        return Made(source, swapped)
    if node.target is aten.select.int:
        at = _dim_argument(node, 1)
        return Made(source, [*dims[:at], [], *dims[at:]]) if same(shape_of(source)[at], 1) else None
    if node.target is aten.expand.default:
        return _broadcast(source, made)
    if node.target is aten.copy.default:
        return _broadcast(node.args[1], made)
    if node.target is aten.slice.Tensor and _same_shape(source, node):
        return Made(source, dims)
    return None


def _broadcast(source: Any, made: Made) -> Made | None:
    """``source`` before it was made as large as ``made``."""
    if source.meta["val"].dtype != made.node.meta["val"].dtype:
        return None
    shape, whole = shape_of(source), shape_of(made.node)
    added = len(whole) - len(shape)
    dims = [[] if same(size, 1) else group for size, group in zip(shape, made.dims[added:], strict=True)]
    return Made(source, dims)


def _same_shape(one: Any, other: Any) -> bool:
    return all(same(a, b) for a, b in zip(shape_of(one), shape_of(other), strict=True))


def _regrouped(dims: Dims, shape: Iterable[Size]) -> Dims | None:
    """The same axes in the same order, in dimensions of other sizes; None where that would split one."""
    flat = [axis for group in dims for axis in group]
    result: Dims = []
    for size in shape:
        group: Group = []
        while not same(product(axis.size for axis in group), size):
            if not flat:
                return None
            group.append(flat.pop(0))
        result.append(group)
    return None if flat else result
