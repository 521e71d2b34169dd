"""Which axes of the scores the dimensions of another tensor are made of.

Attention written as matrix products folds and unfolds dimensions on its way: (batch, heads, q, keys) scores come from a
``bmm`` of (batch * heads, q, dim) and (batch * heads, dim, keys), or of (batch * kv_heads, group * q, dim). Instead of
matching spellings, every dimension is written as an ordered product of *axes*, the dimensions of the scores where they
meet the softmax, and views are replayed on those products, towards the first product and towards the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx import Node

from ..errors import Refused
from .sizes import Size, is_symbolic, product, same
from .views import aten

CONVERSIONS = (torch.ops.prims.convert_element_type.default, aten._to_copy.default)
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_SQUEEZES = (aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims)
_COPIES = (aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default)


class Axis:
    """A factor of the scores' sizes. A view that splits it leaves it with two parts, the slower one first."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self._parts: tuple[Axis, ...] = ()

    def split(self, first: int, second: int) -> None:
        self._parts = (Axis(first), Axis(second))

    def leaves(self) -> list[Axis]:
        return [leaf for part in self._parts for leaf in part.leaves()] if self._parts else [self]


Group = list[Axis]
Dims = list[Group]


def resolved(dims: Iterable[Group]) -> Dims:
    """By the parts that axes were split into since."""
    return [[leaf for axis in group for leaf in axis.leaves()] for group in dims]


def dims_of(shape: Iterable[Size]) -> Dims:
    """An axis for each dimension; none for one of size 1, which carries nothing."""
    return [[] if same(size, 1) else [Axis(size)] for size in shape]


def shape_of(node: Any) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape


def before(dims: Dims, node: Node) -> Dims:
    """What the input of a view or copy is made of, when its output is made of ``dims``.

    Raises:
        Refused: ``node`` is no view, or one that cannot be undone.
    """
    source = node.args[0]
    if node.target in _COPIES or only_rounds(node):
        return dims
    if node.target in _VIEWS or node.target in _SQUEEZES:
        return _regroup(dims, shape_of(source))
    if node.target is aten.permute.default:
        return _unpermuted(dims, node.args[1])  # type: ignore[arg-type]
    if node.target is aten.transpose.int:
        return _transposed(dims, node)
    if node.target in (aten.expand.default, aten.slice.Tensor) and _keeps_shape(node):
        return dims
    raise Refused(f"the scores go through {node.target}, which is not understood")


def after(dims: Dims, node: Node) -> Dims:
    """What the output of a view or copy is made of, when its input is made of ``dims``.

    Raises:
        Refused: ``node`` is no view, or one that changes more than the grouping and the order of the axes.
    """
    if node.target in _COPIES or only_rounds(node):
        return dims
    if node.target in _VIEWS or node.target in _SQUEEZES:
        return _regroup(dims, shape_of(node))
    if node.target is aten.permute.default:
        return [dims[d] for d in node.args[1]]  # type: ignore[union-attr,index]
    if node.target is aten.transpose.int:
        return _transposed(dims, node)
    if node.target in (aten.expand.default, aten.slice.Tensor) and _keeps_shape(node):
        return dims
    raise Refused(f"the attention probabilities go through {node.target}, which is not understood")


def only_rounds(node: Node) -> bool:
    """Whether a node is a conversion that a kernel in float32 may leave out: not to integers, nor to eight bits."""
    return node.target in CONVERSIONS and node.meta["val"].dtype in _FLOATS


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _regroup(dims: Dims, shape: Sequence[Size]) -> Dims:
    """The same axes in the same order, in dimensions of other sizes."""
    flat = [axis for group in resolved(dims) for axis in group]
    result: Dims = []
    for size in shape:
        group: Group = []
        while not same(have := product(axis.size for axis in group), size):
            if not flat:
                raise Refused("a view folds the scores in a way that is not understood")
            _split_to_fit(flat, have, size)
            group.append(flat.pop(0))
        result.append(group)
    if flat:
        raise Refused("a view folds the scores in a way that is not understood")
    return result


def _split_to_fit(flat: Group, have: Size, wanted: Size) -> None:
    """Where the next axis is a multiple of what is missing, split it."""
    size = flat[0].size
    if is_symbolic(size) or is_symbolic(have) or is_symbolic(wanted) or int(wanted) % int(have):
        return
    missing = int(wanted) // int(have)
    if 1 < missing < int(size) and int(size) % missing == 0:
        flat[0].split(missing, int(size) // missing)
        flat[:1] = flat[0].leaves()


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
