"""Scaled-dot-product attention of three dimensions: (heads, length, head_dim) of one sequence, or heads in the batch.

The stand-in calls the marker of four dimensions with one more of size 1. The first dimension becomes heads, so that KV
heads that are repeated or shared along it are read once; where its size is a symbol, which heads may not be, a batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node

from . import sdpa
from .captured import captured_value
from .marker import MARKED_SDPA
from .sizes import is_symbolic


def is_sdpa_3d(node: Node) -> bool:
    return sdpa.is_sdpa(node) and all(_rank(operand) == 3 for operand in _operands(node))


def stand_in_arguments(node: Node, any_device: bool = False) -> tuple[Any, ...]:
    """What :func:`marked_sdpa_3d` is called with, less the site's number; raises as ``sdpa.marker_arguments``."""
    query = captured_value(_operands(node)[0])
    dim = 1 if is_symbolic(query.shape[0]) else 0
    call, lifted = _lifted(node, dim)
    arguments = sdpa.marker_arguments(call, any_device)
    return dim, *(lifted.get(one, one) if isinstance(one, Node) else one for one in arguments)


def marked_sdpa_3d(
    dim: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, *rest: Any
) -> torch.Tensor:
    """SDPA marked as a site, whose number is the last of ``rest``; the others are the marker's own."""
    mask = mask.unsqueeze(dim) if mask is not None and mask.ndim == 3 else mask
    marked: torch.Tensor = MARKED_SDPA(q.unsqueeze(dim), k.unsqueeze(dim), v.unsqueeze(dim), mask, *rest)
    return marked.squeeze(dim)


def _operands(node: Node) -> list[Any]:
    """Query, key and value."""
    named = [node.kwargs.get(name) for name in ("query", "key", "value")]
    return [*node.args[:3], *named[len(node.args) :]]


def _rank(operand: Any) -> int:
    value = captured_value(operand) if isinstance(operand, Node) else None
    return value.ndim if isinstance(value, FakeTensor) else -1


def _lifted(node: Node, dim: int) -> tuple[Node, dict[Node, Node]]:
    """The same call, in a graph of its own, of operands of four dimensions; and what each of them stands for."""
    graph = Graph()
    originals: dict[Node, Node] = {}

    def lift(operand: Node) -> Node:
        placeholder = graph.placeholder(operand.name)
        value: Any = captured_value(operand)
        placeholder.meta["example_value"] = value.unsqueeze(dim) if _rank(operand) == 3 else value
        originals[placeholder] = operand
        return placeholder

    given: Any = (node.args, dict(node.kwargs))
    args, kwargs = torch.fx.node.map_arg(given, lift)
    call = graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
    call.meta["example_value"] = captured_value(node).unsqueeze(dim)
    return call, originals
