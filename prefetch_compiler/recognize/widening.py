"""Operands that code widened to float32 before a product.

A bfloat16 or float16 number is exact in float32, and so is the product of two of them; the kernels sum in float32. So
the scores of widened queries and keys are those of the narrow ones, and a cache need not be converted to be read.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from .axes import CONVERSIONS
from .reshape import as_dtype
from .views import chain_of

_NARROW = (torch.float16, torch.bfloat16)


def narrowed(graph: Graph, q: Node, keys: Node, values: Node) -> tuple[Node, Node, Node]:
    """Queries and keys as they were before both were widened, where the values still are narrow."""
    narrow = values.meta["val"].dtype
    if narrow not in _NARROW or q.meta["val"].dtype != torch.float32 or keys.meta["val"].dtype != torch.float32:
        return q, keys, values
    if _widened_from(q) != narrow or (stored := _without_widening(graph, keys, narrow)) is None:
        return q, keys, values
    return as_dtype(graph, q, narrow), stored, values


def _widened_from(operand: Node) -> torch.dtype | None:
    """What the last conversion in the operand's view chain converted from."""
    for node in chain_of(operand, CONVERSIONS):
        if node.target in CONVERSIONS:
            source: torch.dtype = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
            return source
    return None


def _without_widening(graph: Graph, operand: Node, narrow: torch.dtype) -> Node | None:
    """The operand's views replayed on what was widened."""
    chain = chain_of(operand, CONVERSIONS)
    at = next((at for at, node in enumerate(chain) if node.target in CONVERSIONS), None)
    if at is None or at + 1 >= len(chain) or chain[at + 1].meta["val"].dtype != narrow:
        return None
    node = chain[at + 1]
    for view in reversed(chain[:at]):
        copy = graph.call_function(view.target, (node, *view.args[1:]), dict(view.kwargs))  # type: ignore[arg-type]
        copy.meta["val"] = view.meta["val"].to(narrow)
        node = copy
    return node
