"""Values in a graph as it was captured: Dynamo and torch.export keep them under different names."""

from __future__ import annotations

from typing import Any

from torch.fx import Node


def captured_value(node: Node) -> Any:
    """The fake tensor, or whatever else, that a node gave when it was captured; None where that is not known."""
    return node.meta.get("example_value", node.meta.get("val"))
