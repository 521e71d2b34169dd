"""Softmax in a captured graph: does it stand between two matrix products, as attention written by hand has it?

Softmax alone is no sign of attention (routers of mixtures of experts have one), and it is all that has to be kept from
being decomposed: the products, and everything in between, are read from the functional graph.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from .captured import captured_value
from .sdpa import NotDecode, require_decode_length, require_device
from .sizes import fixed, same

_SOFTMAX: tuple[Any, ...] = (
    F.softmax, torch.softmax, torch.special.softmax, torch.ops.aten.softmax.int, torch.ops.aten.special_softmax.default
)  # fmt: skip
_SOFTMAX_METHODS = ("softmax",)
_PRODUCTS: tuple[Any, ...] = (
    torch.matmul, operator.matmul, torch.bmm, torch.baddbmm, torch.einsum,
    *(getattr(torch.ops.aten, name).default for name in ("matmul", "bmm", "baddbmm", "einsum")),
)  # fmt: skip
_PRODUCT_METHODS = ("matmul", "bmm", "baddbmm", "__matmul__")
# Nodes between a softmax and a product, at most: scaling, capping, masks, sinks, conversions, views.
_MAX_DISTANCE = 24
# Columns that a softmax may have more than there are keys.
_MAX_SINKS = 4


def is_attention_softmax(node: Node) -> bool:
    """Whether ``node`` is a softmax over the last dimension of what came from a product and goes into another."""
    if not _is_softmax(node) or not _over_last_dimension(node):
        return False
    return between_products(_scores(node), node)


def between_products(scores: Node, weights: Node) -> bool:
    """Whether ``scores`` come from a product, and ``weights``, a tensor with a last dimension of keys, go into one."""
    value = _value(weights)
    if value is None or value.ndim < 3:
        return False
    keys = value.shape[-1]
    return _reaches_product(scores, keys, _sources) and _reaches_product(weights, keys, _users)


def marker_arguments(node: Node, any_device: bool = False) -> tuple[Any, ...]:
    """What the marker that replaces a softmax is called with, less the site's number.

    Raises:
        NotDecode: it is attention, but not decode attention.
        Refused: it runs where no kernel does.
    """
    scores = _scores(node)
    value = captured_value(scores)
    require_decode_scores(value, any_device)
    # What it returns: its dtype argument, or what autocast makes of it, which knows nothing of the marker.
    dtype = captured_value(node).dtype
    return scores, None if dtype == value.dtype else dtype


def require_decode_scores(value: torch.Tensor, any_device: bool) -> None:
    """Scores or probabilities (..., queries, keys) that the templates may serve; raises as :func:`marker_arguments`."""
    if value.requires_grad:
        raise NotDecode("gradients are on: call the model under torch.no_grad() or torch.inference_mode()")
    require_decode_length(value.shape[-2])
    for heads in value.shape[1:-2]:
        fixed(heads, "the number of heads")
    if not any_device:
        require_device(value)


def _value(node: Any) -> torch.Tensor | None:
    value = captured_value(node) if isinstance(node, Node) else None
    return value if isinstance(value, FakeTensor) else None


def _is_softmax(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _SOFTMAX_METHODS
    return node.op == "call_function" and node.target in _SOFTMAX


def _is_product(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _PRODUCT_METHODS
    return node.op == "call_function" and node.target in _PRODUCTS


def _argument(node: Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _scores(node: Node) -> Node:
    scores = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(scores, Node)
    return scores


def _over_last_dimension(node: Node) -> bool:
    scores = _value(_scores(node))
    dim = _argument(node, 1, "dim")
    return scores is not None and isinstance(dim, int) and dim in (-1, scores.ndim - 1)


def _sources(node: Node) -> Iterable[Node]:
    return node.all_input_nodes


def _users(node: Node) -> Iterable[Node]:
    return node.users


def _reaches_product(start: Node, keys: Any, neighbours: Any) -> bool:
    """Whether a product is reached through tensors that keep the dimension of the keys (give or take a sink)."""
    seen, front = {start}, [start]
    for _ in range(_MAX_DISTANCE):
        if any(_is_product(node) for node in front if node is not start or neighbours is _sources):
            return True
        front = [node for node in _around(front, neighbours) if node not in seen and _goes_on(node, keys)]
        seen.update(front)
    return False


def _around(front: Iterable[Node], neighbours: Any) -> Iterator[Node]:
    for node in front:
        yield from neighbours(node)


def _goes_on(node: Node, keys: Any) -> bool:
    value = _value(node)
    if value is None:  # max() returns a pair, of which getitem takes one
        return node.op != "placeholder"
    if _is_product(node):
        return True
    sizes = [keys - sinks for sinks in range(_MAX_SINKS + 1)]
    return value.ndim >= 3 and any(same(have, size) for have in value.shape[-2:] for size in sizes)
