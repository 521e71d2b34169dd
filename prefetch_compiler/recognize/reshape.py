"""Views and copies put into a functional graph: tensors that are made of axes, split and put in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from ..errors import Refused
from .axes import Axes, Dims, shape_of
from .sizes import is_symbolic, same
from .trace import insert_call
from .views import aten

# A size as graphs hold it: a constant, a node that reads it, or -1 for what is left.
SizeArgument = Any


def spread(graph: Graph, axes: Axes, tensor: Node, dims: Dims, order: Sequence[int]) -> Node:
    """``tensor``, made of ``dims`` and of any more dimensions, with one dimension per axis in ``order`` (of size 1 for
    axes that it does not have), then those more.

    Raises:
        Refused: it has an axis that is not in ``order``.
    """
    present = [axis for group in dims for axis in group]
    kept = [axis for axis in order if axis in present]
    if len(kept) != len(present):
        raise Refused("an operand of a product has a dimension that it should not have")
    more = range(len(present), len(present) + tensor.meta["val"].ndim - len(dims))
    if any(len(group) != 1 for group in dims):
        tensor = reshape(graph, tensor, _split_sizes(graph, axes, tensor, dims))
    tensor = permute(graph, tensor, [*(present.index(axis) for axis in kept), *more])
    for position, axis in enumerate(order):
        if axis not in present:
            tensor = insert_call(graph, aten.unsqueeze.default, tensor, position)
    return tensor


def _split_sizes(graph: Graph, axes: Axes, tensor: Node, dims: Dims) -> list[SizeArgument]:
    sizes: list[SizeArgument] = []
    for dim, group in enumerate(dims):
        if len(group) == 1:
            sizes.append(size_argument(graph, tensor, dim))
        else:
            sizes.extend(-1 if is_symbolic(axes.sizes[axis]) else int(axes.sizes[axis]) for axis in group)
    return sizes + [size_argument(graph, tensor, dim) for dim in range(len(dims), tensor.meta["val"].ndim)]


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
        copy = graph.call_function(aten.clone.default, (tensor,), {"memory_format": torch.contiguous_format})
        copy.meta["val"] = tensor.meta["val"].clone(memory_format=torch.contiguous_format)
        tensor = copy
    return insert_call(graph, aten.view.default, tensor, list(sizes))


def _viewable(tensor: Node, sizes: Sequence[SizeArgument]) -> bool:
    value = tensor.meta["val"]
    try:
        with value.fake_mode:
            value.view([size.meta["val"] if isinstance(size, Node) else size for size in sizes])
    except (RuntimeError, ValueError):
        return False
    return True


def merge_dims(graph: Graph, tensor: Node, first: int, count: int) -> Node:
    """Dimensions ``first`` to ``first + count`` of constant size as one; a new one of size 1 if ``count`` is 0.

    Raises:
        Refused: one of them is not constant.
    """
    if count == 1:
        return tensor
    shape = shape_of(tensor)
    merged = 1
    for size in shape[first : first + count]:
        if is_symbolic(size):
            raise Refused("the number of heads is not a constant of the graph")
        merged *= int(size)
    others = [size_argument(graph, tensor, dim) for dim in range(len(shape)) if not first <= dim < first + count]
    return reshape(graph, tensor, [*others[:first], merged, *others[first:]])


def as_dtype(graph: Graph, tensor: Node, dtype: torch.dtype) -> Node:
    if tensor.meta["val"].dtype == dtype:
        return tensor
    return insert_call(graph, torch.ops.prims.convert_element_type.default, tensor, dtype)
