"""A quantised cache whose last tokens are not quantised yet: ``cat([dequantised, residual, new])``, as KIVI has it.

Attention over the stored numbers is a kernel's, that over the few tokens after them the graph's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from .axes import shape_of
from .beside import may_be_parted, merged_with, read_numbers_beside
from .reshape import SizeArgument, permute, size_argument
from .site import Site
from .sizes import Size, hint, holds, same
from .trace import insert_call
from .views import StoredKV, aten

_LENGTH = 2
# Of tokens that are not quantised, by the hint of a length that is symbolic: the graph takes each row's products with
# all of them. Twice what transformers gathers by default.
LONGEST_RESIDUAL = 256
_TO_THE_END = 2**63 - 1


@dataclass(frozen=True)
class _InTwo:
    """``first``, then ``last``, which are a few tokens."""

    first: StoredKV
    last: tuple[Node, ...]

    @property
    def first_len(self) -> Size:
        return shape_of(self.first.base)[self.first.order[_LENGTH]]

    def joined(self) -> Node:
        """The last tokens, in one tensor."""
        one, *more = self.last
        return insert_call(one.graph, aten.cat.default, [one, *more], self.first.order[_LENGTH]) if more else one


def read_before_residual(site: Site) -> Site | None:
    """``site`` over the numbers that all but the last tokens of its K and V are dequantised from; None where there are
    no such tokens, or the attention cannot be parted.

    Raises:
        Refused: the layout of the numbers is.
    """
    if not may_be_parted(site):
        return None
    key, value = _in_two(site.key), _in_two(site.value)
    if key is None or value is None:
        return None
    # Tensors of their own have symbols of their own. What does not hold here is another graph's case.
    if not holds(key.first_len == value.first_len, "as many keys as values are quantised"):
        return None
    graph = site.anchor.graph
    with graph.inserting_before(site.met_at):
        first_len = None if site.mask is None else size_argument(graph, key.first.base, key.first.order[_LENGTH])
    mask = _keys_of(site, 0, first_len)

    def merge(out: Node, lse: Node) -> Node:
        few_keys, few_values = (permute(graph, one.joined(), list(one.first.order)) for one in (key, value))
        return merged_with(site, out, lse, few_keys, few_values, _keys_of(site, first_len, _TO_THE_END))

    return read_numbers_beside(site, key.first, value.first, mask, merge)


def _in_two(stored: StoredKV) -> _InTwo | None:
    node, at = stored.base, stored.order[_LENGTH]
    if node.target is not aten.cat.default or node.kwargs:
        return None
    arguments: Any = node.args
    first, *last = arguments[0]
    ndim, dim = len(shape_of(node)), arguments[1] if len(arguments) > 1 else 0
    if dim % ndim != at or not last or any(len(shape_of(part)) != ndim for part in arguments[0]):
        return None
    first_len, whole_len = hint(shape_of(first)[at], 0), hint(shape_of(node)[at], 0)
    if first_len < 1 or whole_len - first_len > LONGEST_RESIDUAL:
        return None
    return _InTwo(StoredKV(first, stored.order), tuple(last))


def _keys_of(site: Site, start: SizeArgument, end: SizeArgument) -> Node | None:
    """The part of the site's mask that is of these keys: a view, put where the first site with that mask is met."""
    mask = site.mask
    if mask is None or same(shape_of(mask)[-1], 1):
        return mask
    graph = site.anchor.graph
    with graph.inserting_before(site.met_at):
        return insert_call(graph, aten.slice.Tensor, mask, len(shape_of(mask)) - 1, start, end)
