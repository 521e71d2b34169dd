"""Attention scores read backwards from the softmax: what is done to the product of queries and keys, step by step.

What is understood, in any order that a softmax over scores allows: multiplying and dividing by constants, tanh (soft
capping), adding tensors (masks, ALiBi, relative positions), filling by a condition, one more column with a constant per
head (an attention sink), conversions, copies and views. Everything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.utils._python_dispatch import _disable_current_modes

from ..errors import Refused
from . import changes
from .axes import CONVERSIONS, Dims, before, dims_of, shape_of
from .changes import Bias, Changes, Factor, Fill, Step
from .sizes import same
from .views import aten


@dataclass(frozen=True)
class Product:
    """``left @ right``, a batch of matrices, made of the axes of the scores (or of the output)."""

    node: Node
    left: Node
    right: Node
    dims: Dims


@dataclass(kw_only=True)
class Scores(Changes):
    """``softmax([changed(product), sink])``.

    Attributes:
        dims: of the scores where they meet the softmax, less the sink's column; the last is the keys'.
        sink: (..., heads, q, 1) logits that only add to the softmax's denominator.
    """

    dims: Dims
    product: Product
    sink: Node | None = None


def read_scores(scores: Node, users: Collection[Node]) -> Scores:
    """What a softmax is taken of. ``users`` of the scores make the softmax, and whatever comes with it.

    Raises:
        Refused: a step is not understood, or an intermediate is used elsewhere too.
    """
    reader = _Reader(scores, users)
    product = reader.run()
    result = Scores(dims=reader.dims, product=product, sink=reader.sink)
    result.follow(reversed(reader.steps))
    return result


def as_product(node: Node) -> tuple[Node, Node] | None:
    """Operands of a batched matrix product: ``bmm``, or the multiplication and sum that Inductor makes of
    one with a single row or column when it tunes."""
    if node.target is aten.bmm.default:
        left, right = node.args[:2]
        return left, right  # type: ignore[return-value]
    if node.target is aten.sum.dim_IntList and node.args[1] in ([2], [-2]) and len(node.args) == 2:
        return _as_summed_product(node.args[0])
    return None


def _as_scores_product(node: Node) -> tuple[Node, Node] | None:
    """The same, or the factors of a product to which a bias is added."""
    if node.target is aten.baddbmm.default:
        return node.args[1], node.args[2]  # type: ignore[return-value]
    return as_product(node)


def _as_summed_product(product: Any) -> tuple[Node, Node] | None:
    """``(a.unsqueeze(-1) * b.unsqueeze(1)).sum(2)`` is ``a @ b``."""
    if not isinstance(product, Node) or product.target is not aten.mul.Tensor:
        return None
    left, right = product.args
    if not (_unsqueezed(left, 3) and _unsqueezed(right, 1)):
        return None
    return left.args[0], right.args[0]  # type: ignore[union-attr,return-value]


def _unsqueezed(node: Any, dim: int) -> bool:
    return isinstance(node, Node) and node.target is aten.unsqueeze.default and node.args[1] in (dim, dim - 4)


class _Reader:
    """Goes from the softmax to the product. ``steps`` are found in reverse."""

    def __init__(self, scores: Node, users: Collection[Node]) -> None:
        shape = shape_of(scores)
        self.sink: Node | None = None
        self.steps: list[Step] = []
        self._node, self._users = scores, users
        if self._node.target is aten.cat.default:
            self._take_sink()
            shape = shape_of(self._node)
        self.dims = self._dims = dims_of(shape)

    def run(self) -> Product:
        while (found := _as_scores_product(self._node)) is None:
            self._require_one_user()
            self._step()
        self._require_one_user()
        left, right = found
        self._take_bias()
        return Product(self._node, left, right, self._dims)

    def _require_one_user(self) -> None:
        extra = [user for user in self._node.users if user not in self._users]
        if extra:
            raise Refused(f"the attention scores are used elsewhere too ({extra[0].name})")

    def _go(self, source: Any) -> None:
        if not isinstance(source, Node):
            raise Refused("the scores do not come from a product of queries and keys")
        self._users, self._node = (self._node,), source

    def _step(self) -> None:
        node = self._node
        handler = _HANDLERS.get(node.target)
        if handler is not None:
            handler(self)
            return
        if node.op != "call_function":
            raise Refused("the scores do not come from a product of queries and keys")
        self._dims = before(self._dims, node)
        self._go(node.args[0])

    def _take_bias(self) -> None:
        """``baddbmm(bias, left, right)`` is ``beta * bias + alpha * left @ right``."""
        node = self._node
        if node.target is not aten.baddbmm.default:
            return
        alpha, beta = (float(node.kwargs.get(name, 1)) for name in ("alpha", "beta"))  # type: ignore[arg-type]
        if beta != 0:
            self.steps.append(changes.adds(Bias(node.args[0], self._dims, beta)))  # type: ignore[arg-type]
        self.steps.append(lambda scores: changes.scale(scores, alpha))

    # Before the first step

    def _take_sink(self) -> None:
        parts, *rest = self._node.args
        if not (isinstance(parts, list | tuple) and len(parts) == 2 and _is_last(rest, self._node)):
            raise Refused("the scores are concatenated in a way that is not understood")
        scores, sink = parts
        if not (isinstance(sink, Node) and same(shape_of(sink)[-1], 1)):
            raise Refused("more than one column is concatenated to the scores")
        self._require_one_user()
        self.sink = sink
        self._go(scores)

    # Steps

    def scaled(self) -> None:
        """mul or div by a constant, or by a tensor that does not differ between keys."""
        source, other = self._scores_and_factor(*self._node.args)
        divides = self._node.target in _DIVISIONS
        if divides and source is not self._node.args[0]:
            raise Refused("something is divided by the scores")
        constant = constant_of(other)
        if constant is None:
            self.steps.append(changes.multiplies(Factor(other, self._dims, divides)))
        elif divides and constant == 0:
            raise Refused("the scores are divided by 0")
        else:
            number = 1 / constant if divides else constant
            self.steps.append(lambda scores: changes.scale(scores, number))
        self._go(source)

    def capped(self) -> None:
        self.steps.append(lambda scores: changes.cap(scores))
        self._go(self._node.args[0])

    def added(self) -> None:
        """add or sub of a tensor that does not depend on the scores."""
        node = self._node
        sign = -1.0 if node.target is aten.sub.Tensor else 1.0
        alpha = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        source, other = self._scores_and_other(node.args[0], node.args[1])
        if source is not node.args[0] and (sign < 0 or alpha != 1):
            raise Refused("the scores are subtracted from something")
        self.steps.append(changes.adds(Bias(other, self._dims, sign * alpha)))
        self._go(source)

    def filled(self) -> None:
        """where(condition, scores, constant), either way round."""
        condition, yes, no = self._node.args
        constants = [constant_of(yes), constant_of(no)]
        if (constants[0] is None) == (constants[1] is None):
            raise Refused("the scores are replaced by something that is not a constant")
        filled_where = constants[0] is not None
        value = constants[0] if filled_where else constants[1]
        source = no if filled_where else yes
        self._require_full_shape(source)
        assert value is not None
        self.steps.append(changes.fills(Fill(condition, self._dims, filled_where, value)))  # type: ignore[arg-type]
        self._go(source)

    def mask_filled(self) -> None:
        source, condition, value = self._node.args
        constant = constant_of(value)
        if constant is None:
            raise Refused("the scores are filled with something that is not a constant")
        self._require_full_shape(source)
        self.steps.append(changes.fills(Fill(condition, self._dims, True, constant)))  # type: ignore[arg-type]
        self._go(source)

    # Operands

    def _scores_and_factor(self, first: Any, second: Any) -> tuple[Any, Any]:
        for scores, factor in ((first, second), (second, first)):
            if constant_of(scores) is None and (constant_of(factor) is not None or _is_same_for_all_keys(factor)):
                self._require_full_shape(scores)
                return scores, factor
        raise Refused("the scores are multiplied or divided by something that differs between keys")

    def _scores_and_other(self, first: Any, second: Any) -> tuple[Any, Node]:
        """Which of two operands leads to the product."""
        for scores, other in ((first, second), (second, first)):
            if isinstance(scores, Node) and isinstance(other, Node) and _leads_to_product(scores, self._node):
                self._require_full_shape(scores)
                return scores, other
        raise Refused("the scores do not come from a product of queries and keys")

    def _require_full_shape(self, source: Any) -> None:
        if not isinstance(source, Node):
            raise Refused("the scores do not come from a product of queries and keys")
        have, want = shape_of(source), shape_of(self._node)
        if len(have) != len(want) or not all(same(a, b) for a, b in zip(have, want, strict=True)):
            raise Refused("the scores are broadcast")


_DIVISIONS = (aten.div.Tensor, aten.div.Scalar)
_HANDLERS: dict[Any, Callable[[_Reader], None]] = {
    aten.mul.Tensor: _Reader.scaled,
    aten.mul.Scalar: _Reader.scaled,
    aten.div.Tensor: _Reader.scaled,
    aten.div.Scalar: _Reader.scaled,
    aten.tanh.default: _Reader.capped,
    aten.add.Tensor: _Reader.added,
    aten.sub.Tensor: _Reader.added,
    aten.where.self: _Reader.filled,
    aten.masked_fill.Scalar: _Reader.mask_filled,
    aten.masked_fill.Tensor: _Reader.mask_filled,
}


def _is_last(rest: list[Any], node: Node) -> bool:
    dim = rest[0] if rest else node.kwargs.get("dim", 0)
    return dim in (-1, node.meta["val"].ndim - 1)


def constant_of(operand: Any) -> float | None:
    """The number that a scalar, or a tensor filled with one, is."""
    if isinstance(operand, int | float) and not isinstance(operand, bool):
        return float(operand)
    if not isinstance(operand, Node):
        return None
    if isinstance(operand.meta.get("val"), torch.SymFloat | torch.SymInt):
        return _fixed(operand.meta["val"])
    if operand.target is aten.full.default:
        return constant_of(operand.args[1])
    if operand.target is aten.full_like.default:
        return constant_of(operand.args[1])
    if operand.target is aten.scalar_tensor.default:
        return constant_of(operand.args[0])
    if operand.op == "get_attr":
        return _stored_constant(operand)
    if operand.target in _SAME_NUMBER:
        return constant_of(operand.args[0])
    return None


_SAME_NUMBER = (
    *CONVERSIONS, aten.clone.default, aten.expand.default, aten.view.default, aten.alias.default,
    aten.lift_fresh_copy.default, aten.detach.default,
)  # fmt: skip


def _fixed(number: torch.SymFloat | torch.SymInt) -> float | None:
    """A number that ``dynamic=True`` made symbolic, with a guard: scales follow from head dims, which never change."""
    return None if number.node.hint is None else float(number)


def _stored_constant(node: Node) -> float | None:
    module = node.graph.owning_module
    value: Any = None if module is None else getattr(module, str(node.target), None)
    if type(value) is not torch.Tensor or value.numel() != 1 or value.is_meta:
        return None
    # Inductor runs its passes under a fake-tensor mode, in which tensors have no values.
    with _disable_current_modes():
        return float(value)


def _leads_to_product(node: Node, user: Node) -> bool:
    """Whether scores come from there: a chain of steps, each with no other user, up to a product. Where two summands
    do (a product with relative positions), either may be taken for the scores: the other is then a bias."""
    if node.op != "call_function" or any(other is not user for other in node.users):
        return False
    return _as_scores_product(node) is not None or any(
        _leads_to_product(source, node) for source in node.all_input_nodes if _goes_on(source)
    )


def _goes_on(source: Node) -> bool:
    value = source.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim >= 3


def _is_same_for_all_keys(factor: Any) -> bool:
    if not isinstance(factor, Node) or not isinstance(factor.meta.get("val"), torch.Tensor):
        return False
    shape = shape_of(factor)
    return len(shape) == 0 or same(shape[-1], 1)
