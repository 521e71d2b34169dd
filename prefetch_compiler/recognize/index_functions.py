"""Functions of (batch, head, query, key) indices, as flex attention takes them, computed for all indices at once.

At decode lengths that is little to compute, and nothing has to be known of the function. A dimension whose index the
function does not use is left out: a mask that is the same for all heads is computed, kept and read once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..errors import Refused
from .per_graph import kept_with
from .scores import constant_of
from .trace import inline
from .value_numbers import value_number
from .views import aten

INDICES = 4

# Tensor-valued functions of tensors.
Function = Callable[..., torch.Tensor]


def part_for(module: GraphModule, inputs: Sequence[Node], result: Node) -> GraphModule:
    """What computes ``result``, a node of ``module``, from its placeholders ``inputs``.

    Raises:
        Refused: it needs a tensor that the module holds: there is no telling two such tensors apart by their names.
    """
    graph = Graph()
    copies = {node: graph.placeholder(f"input_{at}") for at, node in enumerate(inputs)}
    wanted = _sources(result)
    for node in module.graph.nodes:
        if node not in wanted or node in copies:
            continue
        copies[node] = _number(graph, node) if node.op == "get_attr" else graph.node_copy(node, copies.__getitem__)
    graph.output(copies[result])
    return GraphModule(module, graph)


def _number(graph: Graph, held: Node) -> Node:
    """A tensor of one number that a module holds, as a call that makes it."""
    number = constant_of(held)
    if number is None:
        raise Refused(
            "mask_mod or score_mod makes a tensor of constants: make it outside, and let the function capture it"
        )
    tensor: torch.Tensor = getattr(held.graph.owning_module, str(held.target))
    options: dict[str, Any] = {"dtype": tensor.dtype, "device": tensor.device}
    return graph.call_function(aten.full.default, (list(tensor.shape), number), options)


def _sources(result: Node) -> set[Node]:
    found, waiting = {result}, [result]
    while waiting:
        new = [source for source in waiting.pop().all_input_nodes if source not in found]
        found.update(new)
        waiting += new
    return found


def is_always(part: GraphModule, value: bool) -> bool:
    """Whether a function is known to be a constant."""
    (output,) = (node.args[0] for node in part.graph.nodes if node.op == "output")
    if not isinstance(output, Node):
        return False
    if output.target is aten.full.default:
        return output.args[1] is value
    return output.target is aten.new_ones.default and value


def for_all_indices(part: GraphModule, device: torch.device, sizes: Sequence[Any], buffers: Sequence[Any]) -> Any:
    """``part(b, h, q, kv, *buffers)`` for all indices below ``sizes``: (1|B, 1|H, 1|q, 1|kv). What flex attention does
    eagerly, but for the unused indices."""
    placeholders = [node for node in part.graph.nodes if node.op == "placeholder"][:INDICES]
    used = [bool(node.users) for node in placeholders]
    function: Function = part
    arguments: list[torch.Tensor] = []
    for dim in reversed(range(INDICES)):
        if used[dim]:
            in_dims: list[int | None] = [None] * (INDICES + len(buffers))
            in_dims[dim] = 0
            function = torch.vmap(function, in_dims=tuple(in_dims))
    for size, one_of_many in zip(sizes, used, strict=True):
        zero = torch.zeros((), dtype=torch.int64, device=device)
        arguments.append(torch.arange(size, device=device) if one_of_many else zero)
    found = function(*arguments, *buffers)
    for dim, one_of_many in enumerate(used):
        if not one_of_many:
            found = found.unsqueeze(dim)
    return found


def inlined(graph: Graph, before: Node, function: Function, name: Any, operands: Sequence[Any]) -> Node:
    """``function`` of operands, nodes or constants, traced into the graph; sites that need the same share it.

    Args:
        name: tells functions apart.
    """
    nodes = [operand for operand in operands if isinstance(operand, Node)]
    numbered = [f"%{value_number(one)}" if isinstance(one, Node) else one for one in operands]
    key = repr((name, numbered, [str(getattr(node.meta["val"], "shape", None)) for node in nodes]))
    known = kept_with(graph, "index_functions", dict[str, Node])
    if key not in known:
        known[key] = inline(graph, before, functools.partial(_call, function, operands), nodes)
    return known[key]


def _call(function: Function, operands: Sequence[Any], *values: Any) -> torch.Tensor:
    given = iter(values)
    return function(*(next(given) if isinstance(operand, Node) else operand for operand in operands))
