"""Views and copies put into a functional graph: tensors that are made of axes, split and put in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from ..errors import Refused
from .axes import Axis, Dims, Group, resolved, shape_of
from .sizes import is_symbolic, product, same
from .trace import insert_call
from .views import aten

# A size as graphs hold it: a constant, a node that reads it, or -1 for what is left.
SizeArgument = Any


def spread(graph: Graph, tensor: Node, dims: Dims, order: Sequence[Group]) -> Node:
    """``tensor``, made of ``dims`` and of any more dimensions, with one dimension for each of ``order``, made of those
    of its axes that the tensor has (of size 1 if none), then those more.

    Raises:
        Refused: it has an axis that is not in ``order``.
    """
    dims = resolved(dims)
    present = [axis for group in dims for axis in group]
    groups = [[axis for axis in group if axis in present] for group in resolved(order)]
    wanted = [axis for group in groups for axis in group]
    if len(wanted) != len(present):
        raise Refused("an operand of a product has a dimension that it should not have")
    more = [size_argument(graph, tensor, dim) for dim in range(len(dims), tensor.meta["val"].ndim)]
    if groups == dims:
        return tensor
    read = {
        group[0]: size_argument(graph, tensor, dim)
        for dim, group in enumerate(dims)
        if len(group) == 1 and is_symbolic(group[0].size)
    }
    if any(len(group) != 1 for group in dims):
        tensor = reshape(graph, tensor, [*(_size(axis, read) for axis in present), *more])
    behind = range(len(present), len(present) + len(more))
    tensor = permute(graph, tensor, [*(present.index(axis) for axis in wanted), *behind])
    if any(len(group) != 1 for group in groups):
        tensor = reshape(graph, tensor, [*(folded_size(group, read) for group in groups), *more])
    return tensor


def _size(axis: Axis, read: Mapping[Axis, SizeArgument]) -> SizeArgument:
    return read.get(axis, -1) if is_symbolic(axis.size) else int(axis.size)


def folded_size(group: Group, read: Mapping[Axis, SizeArgument]) -> SizeArgument:
    """Of a dimension made of ``group``, where ``read`` has nodes for some symbolic axes."""
    if len(group) == 1:
        return _size(group[0], read)
    size = product(axis.size for axis in group)
    return -1 if is_symbolic(size) else int(size)


def permute(graph: Graph, tensor: Node, order: Sequence[int]) -> Node:
    return tensor if list(order) == sorted(order) else insert_call(graph, aten.permute.default, tensor, list(order))


def size_argument(graph: Graph, tensor: Node, dim: int) -> SizeArgument:
    """A size of a tensor, read where it is symbolic."""
    size = shape_of(tensor)[dim]
    if not is_symbolic(size):
        return int(size)
    node = graph.call_function(aten.sym_size.int, (tensor, dim))
    node.meta["val"] = size
    return node


def reshape(graph: Graph, tensor: Node, sizes: Sequence[SizeArgument]) -> Node:
    """A view, or where the strides do not allow one a view of a copy.

    Raises:
        Refused: more than one size is -1.
    """
    if sum(size == -1 for size in sizes if isinstance(size, int)) > 1:
        raise Refused("a dimension folds several sizes that are not constants of the graph")
    have = shape_of(tensor)
    unchanged = len(have) == len(sizes) and all(
        isinstance(size, int) and same(old, size) for old, size in zip(have, sizes, strict=True)
    )
    if unchanged:
        return tensor
    if not _viewable(tensor, sizes):
        tensor = _copy(graph, tensor)
    return insert_call(graph, aten.view.default, tensor, list(sizes))


def contiguous(graph: Graph, tensor: Node) -> Node:
    return tensor if tensor.meta["val"].is_contiguous() else _copy(graph, tensor)


def _copy(graph: Graph, tensor: Node) -> Node:
    copy = graph.call_function(aten.clone.default, (tensor,), {"memory_format": torch.contiguous_format})
    copy.meta["val"] = tensor.meta["val"].clone(memory_format=torch.contiguous_format)
    return copy


def _viewable(tensor: Node, sizes: Sequence[SizeArgument]) -> bool:
    value = tensor.meta["val"]
    try:
        with value.fake_mode:
            value.view([size.meta["val"] if isinstance(size, Node) else size for size in sizes])
    except (RuntimeError, ValueError):
        return False
    return True


def as_dtype(graph: Graph, tensor: Node, dtype: torch.dtype) -> Node:
    if tensor.meta["val"].dtype == dtype:
        return tensor
    return insert_call(graph, torch.ops.prims.convert_element_type.default, tensor, dtype)
