"""What code makes of attention scores with exponentials and logarithms: is it their softmax, and their log-sum-exp?

A softmax can be written in many ways: less the maximum or not, as a quotient or as ``exp(x - logsumexp(x))``, and the
log-sum-exp beside it likewise. All come to a little algebra. With scores ``x`` and numbers that do not differ between
the keys of a row (rows, for short), every tensor on the way is one of

    x - r,   exp(x - r),   r,   exp(r)

where ``r`` is a sum of rows: the log-sum-exp, and any others, such as maxima, as they come. Summed over the keys,
``exp(x - r)`` is ``exp(lse - r)``. Probabilities are ``exp(x - lse)``, whatever else has cancelled out on the way.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch.fx import Node

from ..errors import Refused
from .axes import CONVERSIONS, only_rounds, shape_of
from .sizes import Size, same
from .softmax_marker import MARKED_SOFTMAX
from .views import aten
from .weights_marker import MARKED_WEIGHTS


class _Kind(Enum):
    SCORES = "x - r"
    EXPONENTIALS = "exp(x - r)"
    ROW = "r"
    EXPONENTIAL_ROW = "exp(r)"
    PAIR = "maxima and where they are"


_LSE = "the log-sum-exp"
# A sum of rows: how often each is added. Rows other than the log-sum-exp are nodes.
_Rows = Mapping[Any, int]
_NOTHING: _Rows = {}
_JUST_LSE: _Rows = {_LSE: 1}


@dataclass(frozen=True)
class _Value:
    kind: _Kind
    rows: _Rows


@dataclass
class LogSpace:
    """What is computed from ``scores`` alone.

    Attributes:
        known: every node of it but the probabilities' marker.
        log_sum_exps: nodes that are the log-sum-exp and that something else uses.
    """

    scores: Node
    weights: Node
    known: set[Node] = field(default_factory=set)
    log_sum_exps: tuple[Node, ...] = ()


def log_space_of(weights: Node) -> LogSpace:
    """The scores that ``weights``, a marker of probabilities, is the softmax of, and what else is made of them.

    Raises:
        Refused: it is not their softmax, or something is made of them that is not understood.
    """
    top = _power(weights)
    # What is taken off first may be anything; whether it is the same for a row, and made of the scores, shows below.
    candidates = [top, _unconverted(top)]
    while (less := _minuend(candidates[-1])) is not None:
        candidates.append(less)
    for scores in reversed(candidates):
        reader = _Reader(scores, weights)
        reader.run()
        if scores is top or reader.knows(top):
            break
    return reader.result()


def _power(weights: Node) -> Node:
    """What the probabilities are a power of, or the operand of the softmax."""
    source: Any = weights.args[0]
    if weights.target is MARKED_SOFTMAX:
        return source  # type: ignore[no-any-return]
    while isinstance(source, Node):
        if source.target is aten.exp.default:
            return source.args[0]  # type: ignore[return-value]
        if source.target not in (*_QUOTIENTS, *_SAME):
            break
        source = source.args[0]
    raise Refused("the probabilities are not made of exponentials of scores")


def _minuend(node: Node) -> Node | None:
    """``x`` of ``x - r``, seen through conversions."""
    node = _unconverted(node)
    if node.target is not aten.sub.Tensor or node.kwargs:
        return None
    x, row = node.args
    if not isinstance(x, Node) or not isinstance(row, Node) or not same(_last(row), 1):
        return None
    return _unconverted(x)


def _unconverted(node: Node) -> Node:
    while node.target in _SAME and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _last(node: Node) -> Size:
    shape = shape_of(node)
    return shape[-1] if len(shape) else 1


_QUOTIENTS = (aten.div.Tensor,)
_COPIES = (aten.clone.default, aten.alias.default, aten.detach.default)
_SAME = (*CONVERSIONS, *_COPIES)
_VIEWS = (aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default)
_REDUCTIONS = (aten.amax.default, aten.max.dim, aten.sum.dim_IntList)


class _Reader:
    """Goes from the scores forward, in the order of the graph."""

    def __init__(self, scores: Node, weights: Node) -> None:
        self._scores, self._weights = scores, weights
        self._shape = shape_of(scores)
        self._values: dict[Node, _Value] = {scores: _Value(_Kind.SCORES, _NOTHING)}
        # Users of what is known that are not known themselves.
        self._outside: list[tuple[Node, Node]] = []

    def knows(self, node: Node) -> bool:
        return node in self._values

    def run(self) -> None:
        waiting = set(self._scores.users)
        node = self._scores.next
        while waiting:
            if node in waiting:
                waiting.discard(node)
                value = self._value_of(node)
                if value is not None:
                    self._values[node] = value
                    waiting.update(node.users)
                    if node is self._weights:
                        waiting.difference_update(node.users)
                else:
                    self._outside += [(source, node) for source in node.all_input_nodes if source in self._values]
            node = node.next

    def result(self) -> LogSpace:
        """Raises:
        Refused: as ``log_space_of``.
        """
        found = self._values.get(self._weights)
        if found is None or (found.kind, found.rows) != (_Kind.EXPONENTIALS, _JUST_LSE):
            raise Refused("the exponentials of the scores are not divided by their sum")
        for source, user in self._outside:
            if not self._is_lse(source):
                what = "the attention scores are" if source is self._scores else "what is made of the scores is"
                raise Refused(f"{what} used elsewhere too ({user.name})")
        log_sum_exps = dict.fromkeys(source for source, _ in self._outside)
        return LogSpace(self._scores, self._weights, self._values.keys() - {self._weights}, tuple(log_sum_exps))

    def _is_lse(self, node: Node) -> bool:
        value = self._values[node]
        return value.kind is _Kind.ROW and value.rows == _JUST_LSE

    def _value_of(self, node: Node) -> _Value | None:
        """What a node is, or None where that is not understood, or not of the scores alone."""
        if node.op != "call_function":
            return None
        if any(source not in self._values for source in node.all_input_nodes):
            return self._row_of_choice(node)
        return self._of(node)

    def _of(self, node: Node) -> _Value | None:
        first = node.args[0] if node.args else None
        source = self._values.get(first) if isinstance(first, Node) else None
        if node.target in (MARKED_SOFTMAX, MARKED_WEIGHTS):
            return self._of_marker(node, source)
        if source is None:
            return self._row_of_choice(node)
        if node.target in _SAME:
            return source if node.target in _COPIES or only_rounds(node) else None
        if node.target in _VIEWS:
            return source if self._is_row(node) and source.kind in (_Kind.ROW, _Kind.EXPONENTIAL_ROW) else None
        if node.target in _REDUCTIONS:
            return self._reduced(node, source)
        if node.target in _BINARY:
            return self._of_two(node, source)
        if node.target is operator.getitem and source.kind is _Kind.PAIR and node.args[1] == 0:
            return _Value(_Kind.ROW, {node: 1})
        if node.target is aten.exp.default and source.kind is _Kind.SCORES:
            return _Value(_Kind.EXPONENTIALS, source.rows)
        if node.target is aten.log.default and source.kind is _Kind.EXPONENTIAL_ROW:
            return _Value(_Kind.ROW, source.rows)
        return self._row_of_choice(node)

    def _of_marker(self, node: Node, source: _Value | None) -> _Value | None:
        if node is not self._weights or source is None:
            return None
        if node.target is MARKED_SOFTMAX:
            return _Value(_Kind.EXPONENTIALS, _JUST_LSE) if source.kind is _Kind.SCORES else None
        return source

    def _row_of_choice(self, node: Node) -> _Value | None:
        """A row of its own, made of rows other than the log-sum-exp and of constants: a maximum, and 0 in its place
        where that is infinite."""
        inputs = [self._values.get(source) for source in node.all_input_nodes]
        rows = [value for value in inputs if value is not None]
        if not all(value.kind is _Kind.ROW and _LSE not in value.rows for value in rows) or not self._is_row(node):
            return None
        others = [source for source, value in zip(node.all_input_nodes, inputs, strict=True) if value is None]
        made_of_rows = bool(rows) and all(map(_is_number, others)) and node.target in _CHOICES
        return _Value(_Kind.ROW, {node: 1}) if made_of_rows else None

    def _reduced(self, node: Node, source: _Value) -> _Value | None:
        """Over the keys."""
        dims = node.args[1] if len(node.args) > 1 else None
        over_keys = dims in (-1, [-1], len(self._shape) - 1, [len(self._shape) - 1])
        if not over_keys or node.kwargs.get("dtype") or not self._is_full(node.args[0]):  # type: ignore[arg-type]
            return None
        if node.target is aten.sum.dim_IntList:
            if source.kind is not _Kind.EXPONENTIALS:
                return None
            return _Value(_Kind.EXPONENTIAL_ROW, _less(_JUST_LSE, source.rows))
        if source.kind is not _Kind.SCORES:
            return None
        return _Value(_Kind.PAIR, _NOTHING) if node.target is aten.max.dim else _Value(_Kind.ROW, {node: 1})

    def _of_two(self, node: Node, first: _Value) -> _Value | None:
        """A difference, a sum or a quotient."""
        second = self._values.get(node.args[1]) if isinstance(node.args[1], Node) else None
        if second is None or node.kwargs or len(node.args) != 2 or not self._fits(node):
            return None
        kinds = (first.kind, second.kind)
        if node.target is aten.add.Tensor:
            return _Value(_Kind.ROW, _sum(first.rows, second.rows)) if kinds == (_Kind.ROW,) * 2 else None
        if node.target is aten.sub.Tensor and kinds == (_Kind.SCORES, _Kind.ROW):
            return _Value(_Kind.SCORES, _sum(first.rows, second.rows))
        if node.target is aten.sub.Tensor and kinds == (_Kind.ROW,) * 2:
            return _Value(_Kind.ROW, _less(first.rows, second.rows))
        if node.target is aten.div.Tensor and kinds == (_Kind.EXPONENTIALS, _Kind.EXPONENTIAL_ROW):
            return _Value(_Kind.EXPONENTIALS, _sum(first.rows, second.rows))
        return None

    # Shapes: scores', or those of a row with or without a dimension for the keys

    def _fits(self, node: Node) -> bool:
        """Whether two operands meet as they should: a row with scores by a last dimension of 1, rows alike."""
        first, second = node.args[:2]
        if self._is_full(first):  # type: ignore[arg-type]
            return self._is_kept_row(second)  # type: ignore[arg-type]
        one, other = shape_of(first), shape_of(second)
        return self._is_row(first) and len(one) == len(other) and _alike(one, other)  # type: ignore[arg-type]

    def _is_full(self, node: Node) -> bool:
        return _alike(shape_of(node), self._shape)

    def _is_kept_row(self, node: Node) -> bool:
        return _alike(shape_of(node), (*self._shape[:-1], 1))

    def _is_row(self, node: Node) -> bool:
        value = node.meta.get("val")
        return hasattr(value, "shape") and (self._is_kept_row(node) or _alike(shape_of(node), self._shape[:-1]))


_BINARY = (aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor)
# What makes a finite number of a maximum.
_CHOICES = (
    aten.abs.default, aten.eq.Scalar, aten.isinf.default, aten.where.self, aten.masked_fill.Scalar,
    aten.isfinite.default, aten.nan_to_num.default, aten.clamp_min.default, aten.ne.Scalar, aten.lt.Scalar,
)  # fmt: skip


def _is_number(node: Node) -> bool:
    """Whether a node has one element, and so is the same for all rows."""
    value: Any = node.meta.get("val")
    return hasattr(value, "numel") and same(value.numel(), 1)


def _alike(shape: Any, other: Any) -> bool:
    return len(shape) == len(other) and all(same(a, b) for a, b in zip(shape, other, strict=True))


def _sum(first: _Rows, second: _Rows) -> _Rows:
    total = {row: first.get(row, 0) + second.get(row, 0) for row in {**first, **second}}
    return {row: times for row, times in total.items() if times}


def _less(first: _Rows, second: _Rows) -> _Rows:
    return _sum(first, {row: -times for row, times in second.items()})
