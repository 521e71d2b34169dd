"""Attention sinks: a learned logit per query head that takes its share of the softmax and no value."""

from __future__ import annotations

from torch.fx import Node

from ..errors import Refused
from .views import source_of_dims


def sink_per_head(column: Node) -> Node:
    """The (query_heads,) tensor that a (batch, heads, q, 1) column of logits repeats.

    Raises:
        Refused: the column is anything else.
    """
    if column.meta["val"].ndim == 4:
        for base, dims in source_of_dims(column):
            if base.meta["val"].ndim == 1 and _only_heads(dims, 1):
                return base
    raise Refused("a sink is not one number per query head")


def _only_heads(dims: list[list[int | None]], head_dim: int) -> bool:
    """Whether the base's only dimension is the dimension of the heads."""
    return all((0 in sources) == (at == head_dim) and len(sources) <= 1 for at, sources in enumerate(dims))
