"""FlexAttention, compiled; its block mask is made from the lengths, once, and shared by all launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ..cases import Case
from ..operands import Operands
from .peer import Attend, paged_reason


@dataclass(frozen=True)
class FlexAttention:
    name: str = "flex"
    family: str = "FlexAttention"

    def unavailable(self) -> str | None:
        return None

    def unsupported(self, case: Case) -> str | None:
        return paged_reason(case)

    def prepare(self, operands: Operands) -> Attend:
        case, block_mask = operands.case, length_mask(operands)
        # Compiled anew for each case, with its sizes as constants. ``fullgraph`` refuses to run uncompiled instead.
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Any = compiled(q, k, v, block_mask=block_mask, scale=case.scale, enable_gqa=case.group > 1)
            result: Tensor = out.view(case.batch, case.query_heads, case.head_dim)
            return result

        attend(operands.q, *operands.caches[0])
        return attend


def length_mask(operands: Operands) -> Any:
    """The block mask of ``operands``' lengths; None where caches are dense."""
    case, held = operands.case, operands.held
    if not case.needs_lengths:
        return None

    def is_held(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key < held[batch]

    return create_block_mask(is_held, case.batch, None, 1, case.capacity, device=str(held.device))
