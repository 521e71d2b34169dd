"""What a block mask lets queries see, as a dense mask.

A block mask holds a function of indices and lists of blocks. Compiled flex attention asks the function only in blocks
that are listed, and not at all in blocks that are listed as full. Where the lists follow from the function, as
``create_block_mask`` makes them, that is the function alone; but nothing keeps the two together (a function may read a
length that has moved on since), so the lists count here as they do there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..spec import MAX_Q_LEN
from .flex_call import BlockLists, FlexCall
from .index_functions import for_all_indices, inlined, is_always, part_for
from .scores import constant_of
from .sizes import Size
from .views import aten

# The block size by which PyTorch says that there are no blocks: longer than any cache.
NO_BLOCKS = 1 << 30


def visible(graph: Graph, before: Node, call: FlexCall) -> Node | None:
    """The dense mask (1|B, 1|H, 1|q, 1|kv), True where a query sees a key; None where it is known to see all."""
    part = _whole(call.mask_mod)
    lists = call.lists
    if _lists_all(lists, call.k.meta["val"].shape[2]):
        if is_always(part, True):
            return None
        operands = [call.q, call.k, *call.mask_buffers]
        return inlined(graph, before, lambda *given: _asked(part, *given), ("mask_mod", part.code), operands)
    lengths = (lists.q_block, lists.kv_block)
    operands = [
        call.q, call.k, lists.counts, lists.indices, lists.full_counts, lists.full_indices, *call.mask_buffers,
    ]  # fmt: skip
    name = ("block mask", part.code, lengths)
    return inlined(graph, before, lambda *given: _asked_where_listed(part, lengths, *given), name, operands)


def _whole(mask_mod: GraphModule) -> GraphModule:
    nodes = list(mask_mod.graph.nodes)
    return part_for(mask_mod, [node for node in nodes if node.op == "placeholder"], nodes[-1].args[0])


def _lists_all(lists: BlockLists, kv_len: Size) -> bool:
    """Whether the lists are known to name every block: one that holds all, as where no block mask is given."""
    if lists.full_counts is not None or lists.q_block < MAX_Q_LEN:
        return False
    holds_all_keys = lists.kv_block >= NO_BLOCKS or (isinstance(kv_len, int) and kv_len <= lists.kv_block)
    return holds_all_keys and _filled_with(lists.counts, 1) and _filled_with(lists.indices, 0)


def _filled_with(node: Node, value: int) -> bool:
    return node.target is aten.full.default and constant_of(node) == value


def _asked(part: GraphModule, q: torch.Tensor, k: torch.Tensor, *buffers: Any) -> torch.Tensor:
    sizes = (*q.shape[:3], k.shape[2])
    found: torch.Tensor = for_all_indices(part, q.device, sizes, buffers)
    return found


def _asked_where_listed(
    part: GraphModule,
    lengths: tuple[int, int],
    q: torch.Tensor,
    k: torch.Tensor,
    counts: torch.Tensor,
    indices: torch.Tensor,
    full_counts: torch.Tensor | None,
    full_indices: torch.Tensor | None,
    *buffers: Any,
) -> torch.Tensor:
    q_len, kv_len = q.shape[2], k.shape[2]
    seen = _asked(part, q, k, *buffers) & listed(counts, indices, q_len, kv_len, lengths)
    if full_counts is None or full_indices is None:
        return seen
    return seen | listed(full_counts, full_indices, q_len, kv_len, lengths)


def listed(
    counts: torch.Tensor, indices: torch.Tensor, q_len: int, kv_len: int, lengths: tuple[int, int]
) -> torch.Tensor:
    """Keys in listed blocks: bool (1|B, 1|H, 1|q, kv). Arguments as in BlockLists."""
    q_block, kv_block = lengths
    if q_block >= MAX_Q_LEN:
        counts, indices = counts[:, :, :1], indices[:, :, :1]
    else:
        rows = torch.arange(q_len, device=counts.device) // q_block
        counts, indices = counts[:, :, rows], indices[:, :, rows]
    blocks = (kv_len + kv_block - 1) // kv_block
    position = torch.arange(indices.shape[3], device=indices.device)
    holds = (position < counts[..., None]) & (indices < blocks)
    # One column more, for what does not hold.
    found = torch.zeros((*indices.shape[:3], blocks + 1), dtype=torch.bool, device=indices.device)
    found = found.scatter(3, torch.where(holds, indices, blocks).to(torch.int64), True)
    return found[..., torch.arange(kv_len, device=indices.device) // kv_block]
