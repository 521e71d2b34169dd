"""One mask from all that is added to or filled into scores."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from ..errors import Refused
from .axes import Dims, Group, resolved, shape_of
from .changes import Bias, Fill
from .per_graph import kept_with
from .reshape import spread
from .sizes import product, same
from .trace import inline, insert_call
from .value_numbers import value_number
from .views import aten

Term = Bias | Fill


def composed_mask(
    graph: Graph, before: Node, terms: Sequence[Term], order: Sequence[Group], dtype: torch.dtype
) -> Node | None:
    """What ``terms`` make of scores, as a mask that SDPA would take: bool if they only fill in -inf, else additive.

    A finite fill becomes the lowest value of the mask's dtype: next to it every score vanishes, as if it had been
    replaced. Layers that compute the same mask share one.

    Args:
        before: where in the graph the mask is needed.
        order: the axes that make up batch, heads, queries and keys.
        dtype: of an additive mask in which nothing is added.

    Raises:
        Refused: a term does not broadcast to the scores.
    """
    if not terms:
        return None
    tensors = [aligned(graph, _tensor(term), term.dims, order) for term in terms]
    only = terms[0]
    if len(terms) == 1 and isinstance(only, Bias) and only.factor == 1:
        return tensors[0]
    key = (tuple(map(value_number, tensors)), tuple(map(_meaning, terms)), dtype)
    known = kept_with(graph, "masks", dict[Any, Node])
    if key not in known:
        known[key] = inline(graph, before, functools.partial(_compose, terms, dtype), tensors)
    return known[key]


def require_swallowing(terms: Sequence[Term], mask: Node | None) -> None:
    """Refused where the log-sum-exp of a row whose keys are all filled would show what they are filled with: ``mask``
    has the lowest value of its dtype in place of it."""
    for term in terms:
        if isinstance(term, Fill) and mask is not None and term.value != -math.inf:
            lowest = torch.finfo(mask.meta["val"].dtype).min
            if term.value != lowest:
                raise Refused(
                    f"scores are filled with {term.value:g} and their log-sum-exp is used; fill them with -inf, or "
                    f"with {lowest:g}"
                )


def _tensor(term: Term) -> Node:
    return term.tensor if isinstance(term, Bias) else term.condition


def _meaning(term: Term) -> Any:
    return term.factor if isinstance(term, Bias) else (term.where, term.value)


def aligned(graph: Graph, tensor: Node, dims: Dims, order: Sequence[Group]) -> Node:
    """``tensor``, which broadcasts to scores made of ``dims``, as it broadcasts to (batch, heads, q, keys)."""
    shape = shape_of(tensor)
    if len(shape) > len(dims):
        raise Refused("a mask has more dimensions than the scores")
    dims = resolved(dims)
    if dims == resolved(order):
        return tensor
    own: Dims = []
    for size, group in zip(shape, dims[len(dims) - len(shape) :], strict=True):
        if not (same(size, 1) or same(size, product(axis.size for axis in group))):
            raise Refused("a mask does not broadcast to the scores")
        own.append([] if same(size, 1) else group)
    return spread(graph, *_with_whole_heads(graph, tensor, own, dims, resolved(order)[1]), order)


def _with_whole_heads(graph: Graph, tensor: Node, own: Dims, dims: Dims, heads: Group) -> tuple[Node, Dims]:
    """The tensor broadcast over all axes of the heads if it has some of them."""
    present = [axis for group in own for axis in group]
    if not any(axis in present for axis in heads) or all(axis in present for axis in heads):
        return tensor, own
    dims = dims[len(dims) - len(own) :]
    wanted = [group if any(axis in heads for axis in group) else mine for group, mine in zip(dims, own, strict=True)]
    if sum(axis in heads for group in wanted for axis in group) != len(heads):
        raise Refused("a mask differs between some heads in a way that is not understood")
    sizes = [
        -1 if mine == group else int(product(axis.size for axis in group))
        for mine, group in zip(own, wanted, strict=True)
    ]
    return insert_call(graph, aten.expand.default, tensor, sizes), wanted


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
