"""Putting traced torch code into a functional ATen graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves


def inline(graph: Graph, before: Node, function: Callable[..., torch.Tensor], operands: Sequence[Node]) -> Node:
    """Trace ``function`` on the operands' fake values with Inductor's decompositions, and insert it before ``before``.

    The traced nodes look as if AOTAutograd had traced them with the rest of the graph.

    Returns:
        The node of the function's result.
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch._inductor import decomposition
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental.proxy_tensor import make_fx

    values = [operand.meta["val"] for operand in operands]
    fake_mode = next(value.fake_mode for value in values if isinstance(value, FakeTensor))
    with fake_mode, enable_python_dispatcher():
        traced = make_fx(function, decomposition.select_decomp_table(), tracing_mode="real")(*values)
    mapping: dict[Node, Node] = {}
    placeholders = iter(operands)
    with graph.inserting_before(before):
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                mapping[node] = next(placeholders)
            elif node.op == "output":
                (result,) = node.all_input_nodes
                return mapping[result]
            else:
                mapping[node] = graph.node_copy(node, mapping.__getitem__)
    raise AssertionError("a traced graph has an output")


def insert_call(graph: Graph, target: torch._ops.OpOverload, *arguments: object) -> Node:
    """A call of an operator at the graph's insertion point, with the fake value that later passes expect."""
    node = graph.call_function(target, arguments)  # type: ignore[arg-type]
    given: Any = arguments
    values: Any = torch.fx.node.map_arg(given, lambda operand: operand.meta["val"])
    fake_mode = next(v.fake_mode for v in tree_leaves(values) if hasattr(v, "fake_mode"))
    with fake_mode:
        node.meta["val"] = target(*values)
    return node


def insert_constant(graph: Graph, number: float, shape: Sequence[int], like: Node) -> Node:
    """A float32 tensor of one number at the graph's insertion point, on the device of ``like``."""
    value: Any = like.meta["val"]
    options: dict[str, Any] = {"dtype": torch.float32, "device": value.device, "pin_memory": False}
    node = graph.call_function(torch.ops.aten.full.default, (list(shape), number), options)
    with value.fake_mode:
        node.meta["val"] = torch.full(tuple(shape), number, dtype=torch.float32, device=value.device)
    return node
