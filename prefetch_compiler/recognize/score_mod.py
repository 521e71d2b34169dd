"""A ``score_mod`` of flex attention: what it does to a score, in the vocabulary of ``changes``.

From its result back to the score, each step is a multiplication by a constant, a tanh, an addition or a fill; whatever
else takes part does not depend on the score, and is computed for all indices like a mask. Everything else is refused
by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..errors import Refused
from . import changes
from .axes import CONVERSIONS, Dims
from .changes import Bias, Changes, Fill, Step
from .flex_call import FlexCall
from .index_functions import for_all_indices, inlined, part_for
from .scores import constant_of
from .views import aten

_ADVICE = (
    "scale, soft-cap, bias and fill scores, in this order, in score_mod, or leave the site to Inductor's flex attention"
)


def read_score_mod(graph: Graph, before: Node, call: FlexCall, dims: Dims) -> Changes:
    """What ``call.score_mod`` does to scores made of ``dims``.

    Raises:
        Refused: a step is not understood, or the order of steps is not one that the kernels have.
    """
    steps = _Reader(graph, before, call, dims).run()
    found = Changes(scale=call.scale)
    try:
        found.follow(steps)
    except Refused as refusal:
        raise Refused(f"score_mod: {refusal.reason}: {_ADVICE}") from refusal
    return found


class _Reader:
    """Goes from the result to the score."""

    def __init__(self, graph: Graph, before: Node, call: FlexCall, dims: Dims) -> None:
        self._graph, self._before, self._call, self._dims = graph, before, call, dims
        nodes = list(call.score_mod.graph.nodes)
        self._score, *self._inputs = (node for node in nodes if node.op == "placeholder")
        # Types of a traced function's arguments follow from the operators, which Python's types do not know.
        self._node: Any = nodes[-1].args[0]
        self._depends = _depending_on(self._score, call.score_mod)
        self._steps: list[Step] = []

    def run(self) -> list[Step]:
        if self._node not in self._depends:
            raise _not_understood("the result does not depend on the score")
        while self._node is not self._score:
            step = _STEPS.get(self._node.target)
            if step is None:
                raise _not_understood(f"the score goes through {self._node.target}")
            self._node = step(self)
        return self._steps[::-1]

    def _all_indices(self, operand: Node) -> Node:
        """A node that does not depend on the score."""
        part = part_for(self._call.score_mod, self._inputs, operand)
        operands = [self._call.q, self._call.k, *self._call.score_buffers]

        def computed(q: Any, k: Any, *buffers: Any) -> Any:
            return for_all_indices(part, q.device, (*q.shape[:3], k.shape[2]), buffers)

        return inlined(self._graph, self._before, computed, ("score_mod", part.code), operands)

    def _everywhere(self, number: float) -> Node:
        """The same number for all indices."""

        def filled(q: Any) -> Any:
            return torch.full((1, 1, 1, 1), number, dtype=torch.float32, device=q.device)

        return inlined(self._graph, self._before, filled, ("number", number), [self._call.q])

    def _score_and_other(self) -> tuple[Any, Any]:
        first, second = self._node.args[:2]
        if first in self._depends and second in self._depends:
            raise _not_understood(f"{self._node.target} is given the score twice")
        return (first, second) if first in self._depends else (second, first)

    # Steps: what the node does is noted; returned is where its score comes from

    def scaled(self) -> Any:
        score, other = self._score_and_other()
        divides = self._node.target in (aten.div.Tensor, aten.div.Scalar)
        number = constant_of(other)
        if number is None:
            raise _not_understood("the score is multiplied or divided by what is not a constant")
        if divides and (score is not self._node.args[0] or number == 0):
            raise _not_understood("something is divided by the score, or the score by 0")
        factor = 1 / number if divides else number
        self._steps.append(lambda scores: changes.scale(scores, factor))
        return score

    def negated(self) -> Any:
        self._steps.append(lambda scores: changes.scale(scores, -1.0))
        return self._only_operand()

    def capped(self) -> Any:
        self._steps.append(lambda scores: changes.cap(scores))
        return self._only_operand()

    def converted(self) -> Any:
        if not self._node.meta["val"].is_floating_point():
            raise _not_understood("the score is rounded to an integer")
        return self._only_operand()

    def added(self) -> Any:
        score, other = self._score_and_other()
        sign = -1.0 if self._node.target is aten.sub.Tensor else 1.0
        alpha = float(self._node.kwargs.get("alpha", 1))
        if score is not self._node.args[0] and (sign < 0 or alpha != 1):
            raise _not_understood("the score is subtracted from something")
        number = constant_of(other)
        if number != 0:
            bias = self._all_indices(other) if number is None else self._everywhere(number)
            self._steps.append(changes.adds(Bias(bias, self._dims, sign * alpha)))
        return score

    def filled(self) -> Any:
        """where(condition, score, constant), either way round."""
        condition, yes, no = self._node.args
        filled_where = no in self._depends
        score, filling = (no, yes) if filled_where else (yes, no)
        value = constant_of(filling)
        if condition in self._depends or filling in self._depends or value is None:
            raise _not_understood("where() chooses between the score and what is not a constant")
        self._steps.append(changes.fills(Fill(self._all_indices(condition), self._dims, filled_where, value)))
        return score

    def mask_filled(self) -> Any:
        score, condition, filling = self._node.args
        value = constant_of(filling)
        if condition in self._depends or value is None:
            raise _not_understood("the score is filled with what is not a constant")
        self._steps.append(changes.fills(Fill(self._all_indices(condition), self._dims, True, value)))
        return score

    def _only_operand(self) -> Any:
        return self._node.args[0]


_STEPS: dict[Any, Callable[[_Reader], Any]] = {
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar), _Reader.scaled),
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor), _Reader.added),
    **dict.fromkeys((aten.masked_fill.Scalar, aten.masked_fill.Tensor), _Reader.mask_filled),
    **dict.fromkeys(CONVERSIONS, _Reader.converted),
    **dict.fromkeys((aten.clone.default, aten.alias.default, aten.detach.default), _Reader._only_operand),
    aten.neg.default: _Reader.negated,
    aten.tanh.default: _Reader.capped,
    aten.where.self: _Reader.filled,
}


def _not_understood(what: str) -> Refused:
    return Refused(f"score_mod is not understood ({what}): {_ADVICE}")


def _depending_on(score: Node, module: GraphModule) -> set[Node]:
    found = {score}
    for node in module.graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found
