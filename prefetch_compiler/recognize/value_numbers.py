"""Value numbers: nodes of a functional graph that compute the same thing from the same inputs have the same number."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from .per_graph import kept_with


class ValueNumbers:
    """Numbers the nodes of one functional graph, where equal operators on equal operands are equal values. Random
    operators are not."""

    def __init__(self) -> None:
        self._number: dict[Node, int] = {}
        self._known: dict[Any, int] = {}

    def __call__(self, node: Node) -> int:
        """The number of ``node``."""
        waiting = [node]
        while waiting:
            top = waiting[-1]
            missing = [source for source in top.all_input_nodes if source not in self._number]
            if missing and top not in self._number:
                waiting.extend(missing)
                continue
            waiting.pop()
            if top not in self._number:
                self._number[top] = self._known.setdefault(self._key(top), len(self._known))
        return self._number[node]

    def _key(self, node: Node) -> Any:
        if node.op != "call_function" or not _is_pure(node.target):
            return node
        given: Any = (node.args, node.kwargs)
        numbered = torch.fx.node.map_arg(given, self._operand)
        return node.target, repr(numbered)

    def _operand(self, source: Node) -> Any:
        return _Number(self._number[source])


class _Number:
    """An operand's number, told from an integer argument."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __repr__(self) -> str:
        return f"%{self._number}"


def _is_pure(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__module__", "") in ("_operator", "math")
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def value_number(node: Node) -> int:
    """The number of a node in its graph. The graph's nodes may get other operands of the same values meanwhile."""
    return kept_with(node.graph, "value_numbers", ValueNumbers)(node)
