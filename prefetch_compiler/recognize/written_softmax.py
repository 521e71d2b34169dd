"""A softmax written out, in the Dynamo graph: ``exp(x) / exp(x).sum(-1)`` or ``exp(x - logsumexp(x))``, as it looks.

Whether it is a softmax is proved in the functional graph (``log_space``); here only what may be one is marked.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from .captured import captured_value
from .softmax import between_products, require_decode_scores

_QUOTIENTS: tuple[Any, ...] = (operator.truediv, torch.div, torch.true_divide, torch.divide)
_QUOTIENT_METHODS = ("div", "true_divide", "divide", "__truediv__")
_DIFFERENCES: tuple[Any, ...] = (operator.sub, torch.sub, torch.subtract)
_DIFFERENCE_METHODS = ("sub", "subtract", "__sub__")
_SUMS: tuple[Any, ...] = (operator.add, torch.add)
_SUM_METHODS = ("add", "__add__")
_EXP: tuple[Any, ...] = (torch.exp,)
_LOG: tuple[Any, ...] = (torch.log,)
_LOG_SOFTMAX: tuple[Any, ...] = (torch.log_softmax, F.log_softmax, torch.special.log_softmax)
_LOG_SUM_EXP: tuple[Any, ...] = (torch.logsumexp, torch.special.logsumexp)
_VIEWS = ("unsqueeze", "view", "reshape", "to", "float", "detach", "clone", "contiguous")


def is_written_softmax(node: Node) -> bool:
    """Whether ``node`` looks like the probabilities of a softmax between two products."""
    return (_is_quotient_of_exponentials(node) or _is_exponential_less_lse(node)) and between_products(node, node)


def marker_arguments(node: Node, any_device: bool = False) -> tuple[Any, ...]:
    """What the marker behind the probabilities is called with, less the site's number.

    Raises:
        NotDecode: it is attention, but not decode attention.
        Refused: it runs where no kernel does.
    """
    require_decode_scores(captured_value(node), any_device)
    return (node,)


def _is(node: Any, functions: tuple[Any, ...], methods: tuple[str, ...]) -> bool:
    if not isinstance(node, Node):
        return False
    return node.target in (methods if node.op == "call_method" else functions if node.op == "call_function" else ())


def _is_quotient_of_exponentials(node: Node) -> bool:
    if not _is(node, _QUOTIENTS, _QUOTIENT_METHODS) or len(node.args) != 2 or node.kwargs:
        return False
    return _is(node.args[0], _EXP, ("exp",)) and isinstance(node.args[1], Node)


def _is_exponential_less_lse(node: Node) -> bool:
    if not _is(node, _EXP, ("exp",)) or not node.args:
        return False
    power = node.args[0]
    if _is(power, _LOG_SOFTMAX, ("log_softmax",)):
        return True
    return _is(power, _DIFFERENCES, _DIFFERENCE_METHODS) and len(power.args) == 2 and _is_lse(power.args[1])  # type: ignore[union-attr]


def _is_lse(node: Any) -> bool:
    """``logsumexp(x)``, or the logarithm of a sum and a maximum added, through views."""
    while isinstance(node, Node) and (node.target is operator.getitem or node.target in _VIEWS):
        node = node.args[0]
    if _is(node, _SUMS, _SUM_METHODS):
        return any(_is(term, _LOG, ("log",)) for term in node.args)
    return _is(node, (*_LOG_SUM_EXP, *_LOG), ("logsumexp", "log"))
