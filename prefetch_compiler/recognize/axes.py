"""Which axes of the scores the dimensions of another tensor are made of.

Attention written as matrix products folds and unfolds dimensions on its way: (batch, heads, q, keys) scores come from a
``bmm`` of (batch * heads, q, dim) and (batch * heads, dim, keys), or of (batch * kv_heads, group * q, dim). Instead of
matching spellings, every dimension is written as an ordered product of *axes*, the dimensions of the scores where they
meet the softmax, and views are replayed on those products, towards the first product and towards the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from ..errors import Refused
from .sizes import Size, product, same
from .views import aten

Dims = list[list[int]]

CONVERSIONS = (torch.ops.prims.convert_element_type.default, aten._to_copy.default)
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_COPIES = (aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default)


def shape_of(node: Any) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape


class Axes:
    """The axes of the scores, by size. An axis of one element carries nothing and occurs in no dimension."""

    def __init__(self, sizes: Sequence[Size]) -> None:
        self.sizes = tuple(sizes)

    def own(self) -> Dims:
        """Of the tensor that the axes are the dimensions of."""
        return [[] if same(size, 1) else [axis] for axis, size in enumerate(self.sizes)]

    def before(self, dims: Dims, node: Node) -> Dims:
        """What the input of a view or copy is made of, when its output is made of ``dims``.

        Raises:
            Refused: ``node`` is no view, or one that cannot be undone.
        """
        target, source = node.target, node.args[0]
        if target in _COPIES or target in CONVERSIONS:
            return dims
        if target in _VIEWS:
            return self._regroup(dims, shape_of(source))
        if target is aten.permute.default:
            return _unpermuted(dims, node.args[1])  # type: ignore[arg-type]
        if target is aten.transpose.int:
            return _transposed(dims, node)
        if target in (aten.expand.default, aten.slice.Tensor) and _keeps_shape(node):
            return dims
        if target in (aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims):
            return self._regroup(dims, shape_of(source))
        raise Refused(f"the scores go through {target}, which is not understood")

    def after(self, dims: Dims, node: Node) -> Dims:
        """What the output of a view or copy is made of, when its input is made of ``dims``.

        Raises:
            Refused: ``node`` is no view, or one that changes more than the grouping and the order of the axes.
        """
        target = node.target
        if target in _COPIES or target in CONVERSIONS:
            return dims
        if target in (*_VIEWS, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims):
            return self._regroup(dims, shape_of(node))
        if target is aten.permute.default:
            return [dims[d] for d in node.args[1]]  # type: ignore[union-attr,index]
        if target is aten.transpose.int:
            return _transposed(dims, node)
        if target in (aten.expand.default, aten.slice.Tensor) and _keeps_shape(node):
            return dims
        raise Refused(f"the attention probabilities go through {target}, which is not understood")

    def _regroup(self, dims: Dims, shape: Sequence[Size]) -> Dims:
        """The same axes in the same order, in dimensions of other sizes."""
        flat = [axis for group in dims for axis in group]
        result: Dims = []
        for size in shape:
            group: list[int] = []
            while not same(product(self.sizes[axis] for axis in group), size):
                if not flat:
                    raise Refused("a view splits a dimension of the scores")
                group.append(flat.pop(0))
            result.append(group)
        if flat:
            raise Refused("a view splits a dimension of the scores")
        return result


def _keeps_shape(node: Node) -> bool:
    before, after = shape_of(node.args[0]), shape_of(node)
    return len(before) == len(after) and all(same(old, new) for old, new in zip(before, after, strict=True))


def _unpermuted(dims: Dims, order: Sequence[int]) -> Dims:
    result: Dims = [[] for _ in dims]
    for position, source in enumerate(order):
        result[source] = dims[position]
    return result


def _transposed(dims: Dims, node: Node) -> Dims:
    _, a, b = node.args
    result = list(dims)
    result[a], result[b] = dims[b], dims[a]  # type: ignore[index]
    return result
