"""One mask from all that is added to or filled into scores."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from ..errors import Refused
from .axes import Axes, Dims, shape_of
from .reshape import merge_dims, spread
from .scores import Bias, Fill
from .sizes import product, same
from .trace import inline, insert_call
from .value_numbers import value_number
from .views import aten

Term = Bias | Fill


def composed_mask(
    graph: Graph, before: Node, axes: Axes, terms: Sequence[Term], heads: Sequence[int], dtype: torch.dtype
) -> Node | None:
    """What ``terms`` make of scores, as a mask that SDPA would take: bool if they only fill in -inf, else additive.

    A finite fill becomes the lowest value of the mask's dtype: next to it every score vanishes, as if it had been
    replaced. Layers that compute the same mask share one.

    Args:
        before: where in the graph the mask is needed.
        heads: the axes between the batch and the queries.
        dtype: of an additive mask in which nothing is added.

    Raises:
        Refused: a term does not broadcast to the scores.
    """
    if not terms:
        return None
    tensors = [_aligned(graph, axes, _tensor(term), term.dims, heads) for term in terms]
    only = terms[0]
    if len(terms) == 1 and isinstance(only, Bias) and only.factor == 1:
        return tensors[0]
    key = (tuple(map(value_number, tensors)), tuple(map(_meaning, terms)), dtype)
    known = _composed.setdefault(graph, {})
    if key not in known:
        known[key] = inline(graph, before, functools.partial(_compose, terms, dtype), tensors)
    return known[key]


_composed: weakref.WeakKeyDictionary[Graph, dict[Any, Node]] = weakref.WeakKeyDictionary()


def _tensor(term: Term) -> Node:
    return term.tensor if isinstance(term, Bias) else term.condition


def _meaning(term: Term) -> Any:
    return term.factor if isinstance(term, Bias) else (term.where, term.value)


def _aligned(graph: Graph, axes: Axes, tensor: Node, dims: Dims, heads: Sequence[int]) -> Node:
    """``tensor``, which broadcasts to scores made of ``dims``, as it broadcasts to (batch, heads, q, keys)."""
    shape = shape_of(tensor)
    if len(shape) > len(dims):
        raise Refused("a mask has more dimensions than the scores")
    if len(heads) == 1 and dims == axes.own():
        return tensor
    own: Dims = []
    for size, group in zip(shape, dims[len(dims) - len(shape) :], strict=True):
        if not (same(size, 1) or same(size, product(axes.sizes[axis] for axis in group))):
            raise Refused("a mask does not broadcast to the scores")
        own.append([] if same(size, 1) else group)
    whole = spread(graph, axes, tensor, own, range(len(axes.sizes)))
    return _merged_heads(graph, axes, whole, heads)


def _merged_heads(graph: Graph, axes: Axes, mask: Node, heads: Sequence[int]) -> Node:
    """One dimension for all head axes, broadcast over those that the mask does not have unless it has none."""
    if any(not same(shape_of(mask)[axis], 1) for axis in heads):
        sizes = [int(axes.sizes[axis]) if axis in heads else -1 for axis in range(len(axes.sizes))]
        mask = insert_call(graph, aten.expand.default, mask, sizes)
    return merge_dims(graph, mask, 1, len(heads))


def _compose(terms: Sequence[Term], dtype: torch.dtype, *tensors: torch.Tensor) -> torch.Tensor:
    if all(isinstance(term, Fill) and term.value == -math.inf for term in terms):
        visible = [~tensor if term.where else tensor for term, tensor in zip(terms, tensors, strict=True)]  # type: ignore[union-attr]
        return functools.reduce(torch.logical_and, visible)
    kinds = [tensor.dtype for tensor in tensors if tensor.is_floating_point()] or [dtype]
    common = functools.reduce(torch.promote_types, kinds)
    if common == torch.float16:  # its lowest value does not swallow a score
        common = torch.float32
    total: torch.Tensor | None = None
    for term, tensor in zip(terms, tensors, strict=True):
        if isinstance(term, Bias):
            bias = tensor.to(common) * term.factor
            total = bias if total is None else total + bias
        else:
            hidden = tensor if term.where else ~tensor
            low = -math.inf if term.value == -math.inf else torch.finfo(common).min
            rest = torch.zeros((), dtype=common, device=tensor.device) if total is None else total
            total = torch.where(hidden, low, rest)
    assert total is not None
    return total.to(common)
