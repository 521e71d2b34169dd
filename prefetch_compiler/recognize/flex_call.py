"""A call of the flex attention operator, which has the same operands in a captured graph and in the functional one."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch._higher_order_ops.flex_attention import flex_attention
from torch.fx import GraphModule, Node

from ..errors import Refused
from .captured import captured_value
from .sdpa import is_heads_first, require_decode_operands, require_inference
from .sizes import fixed, holds, same


@dataclass(frozen=True)
class BlockLists:
    """Which blocks of keys a block of queries looks at.

    Attributes:
        counts, indices: int32 (1|B, 1|H, query blocks) and (1|B, 1|H, query blocks, at most all blocks of keys), of
            the blocks in which ``mask_mod`` decides; of each list the first ``counts`` entries hold.
        full_counts, full_indices: likewise, of blocks in which every key is seen; None where there are none.
        q_block, kv_block: queries and keys in a block.
    """

    counts: Node
    indices: Node
    full_counts: Node | None
    full_indices: Node | None
    q_block: int
    kv_block: int


@dataclass(frozen=True)
class FlexCall:
    """One call. ``score_mod`` takes (score, b, h, q, kv, *score_buffers) and ``mask_mod`` (b, h, q, kv, *mask_buffers),
    all numbers, but for the buffers: nodes or constants of the call's graph. ``log_sum_exps`` take that result, which
    is (batch, heads, queries), in units of log 2 if ``log_of_two``, else natural ones."""

    node: Node
    q: Node
    k: Node
    v: Node
    score_mod: GraphModule
    mask_mod: GraphModule
    lists: BlockLists
    scale: float
    score_buffers: tuple[Any, ...]
    mask_buffers: tuple[Any, ...]
    log_sum_exps: tuple[Node, ...]
    log_of_two: bool


def is_flex_output(node: Node) -> bool:
    """Whether a node takes the output of a flex attention, which has two more results."""
    if node.op != "call_function" or node.target is not operator.getitem or node.args[1] != 0:
        return False
    source = node.args[0]
    return isinstance(source, Node) and source.op == "call_function" and source.target is flex_attention


def marker_arguments(node: Node, any_device: bool = False) -> tuple[Any, ...]:
    """What the marker behind a flex attention's output is called with, less the site's number.

    Raises:
        NotDecode: it is attention, but not decode attention.
        Refused: it is decode attention of a kind that the templates do not serve.
    """
    q, k, v, _, block_mask, *_ = _arguments(_call(node))
    require_inference(q, k, v)
    require_decode_operands(q, k, v, None, node, enable_gqa=True, any_device=any_device)
    is_heads_first(captured_value(node))
    _require_broadcast(block_mask[2], q)
    for size in block_mask[-3:-1]:
        _block_size(size)
    return (node,)


def _require_broadcast(counts: Node, q: Node) -> None:
    """A block mask of one or as many sequences and heads as the query, or Refused. With a guard where it is as many and
    the query's are symbols: other block masks would not fit either."""
    have, want = captured_value(counts).shape[:2], captured_value(q).shape[:2]
    if not all(same(own, 1) or holds(own == size, "the block mask fits") for own, size in zip(have, want, strict=True)):
        raise Refused(
            f"the block mask is for {tuple(have)} sequences and heads, the query has {tuple(want)}: create it for as "
            "many, or for one"
        )


def read_call(node: Node) -> FlexCall:
    """The call of whose results ``node`` is the first, in a functional graph.

    Raises:
        Refused: the maximum of the scores is used, or an argument is not a constant that must be one.
    """
    call = _call(node)
    q, k, v, score_mod, block_mask, scale, kernel_options, *buffers = _arguments(call)
    score_buffers, mask_buffers = (*buffers, (), ())[:2]
    log_sum_exps = _log_sum_exps(call)
    if not isinstance(scale, int | float):
        raise Refused("scale is not a constant of the graph: pass a Python float, or multiply the query by the scale")
    # The tuple's middle differs between versions of PyTorch; it is for backward.
    _, _, counts, indices, full_counts, full_indices, *_, q_block, kv_block, mask_mod = block_mask
    sizes = _block_size(q_block), _block_size(kv_block)
    lists = BlockLists(counts, indices, full_counts, full_indices, *sizes)
    modules = _module(score_mod), _module(mask_mod)
    return FlexCall(
        call, q, k, v, *modules, lists, float(scale), tuple(score_buffers), tuple(mask_buffers), log_sum_exps,
        kernel_options.get("BACKEND") != "FLASH",
    )  # fmt: skip


def _block_size(size: Any) -> int:
    """Queries or keys in a block."""
    return fixed(captured_value(size) if isinstance(size, Node) else size, "the size of the block mask's blocks")


def _call(node: Node) -> Node:
    call = node.args[0]
    assert isinstance(call, Node)
    return call


def _arguments(call: Node) -> Any:
    """The operator's arguments, which are all positional. Their types Python does not know."""
    return call.args


def _module(node: Any) -> GraphModule:
    owner = node.graph.owning_module
    module = None if owner is None else getattr(owner, str(node.target), None)
    if not isinstance(module, GraphModule):
        raise Refused("score_mod or mask_mod is not traced as a graph")
    return module


def _log_sum_exps(call: Node) -> tuple[Node, ...]:
    """Nodes that take the call's second result."""
    if any(user.target is not operator.getitem or user.args[1] not in (0, 1) for user in call.users):
        raise Refused(
            "the maximum of the scores is used, which the kernels do not return: call flex_attention without "
            "max_scores in its return_aux"
        )
    return tuple(user for user in call.users if user.args[1] == 1)


def output_of(marker: Node) -> Node:
    """The output that a marker hands on."""
    out = marker.args[0]
    if not isinstance(out, Node) or not is_flex_output(out):
        raise Refused("the output of flex attention does not reach its marker")
    return out
