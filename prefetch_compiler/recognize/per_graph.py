"""What is remembered of a graph as long as the graph lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.fx import Graph

T = TypeVar("T")


def kept_with(graph: Graph, name: str, make: Callable[[], T]) -> T:
    """What is remembered of a graph under ``name``, made at the first call. It is an attribute of the graph, because it
    holds the graph's nodes: in a dictionary by graphs, even a weak one, it would keep every graph alive for ever."""
    kept: dict[str, Any] = graph.__dict__.setdefault("_kvprefetch", {})
    if name not in kept:
        kept[name] = make()
    found: T = kept[name]
    return found
