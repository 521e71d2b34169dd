"""FlashAttention 2 (``flash_attn``) and 3 (``flash_attn_interface``): ``flash_attn_with_kvcache`` of each.

Both take any strides whose last one is 1, so that either order of a cache in one piece is passed as it is.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..cases import Case
from ..operands import Operands
from .peer import Attend, as_rows, load, why_not_loaded

_FUNCTION = "flash_attn_with_kvcache"
# flash_attn 2 refuses others ("Paged KV cache block size must be divisible by 256").
_PAGE_MULTIPLE_2 = 256


@dataclass(frozen=True)
class FlashAttention2:
    name: str = "flash-attention 2"
    family: str = "FlashAttention 2"

    def unavailable(self) -> str | None:
        return why_not_loaded("flash_attn", _FUNCTION)

    def unsupported(self, case: Case) -> str | None:
        page = case.layout.page_size
        return None if page is None else f"pages of {page}: takes multiples of {_PAGE_MULTIPLE_2} only"

    def prepare(self, operands: Operands) -> Attend:
        function = load("flash_attn").flash_attn_with_kvcache
        return _attend(function, operands, {"cache_seqlens": operands.held})


@dataclass(frozen=True)
class FlashAttention3:
    """The scheduler's metadata are computed before, as serving engines do once a step, where the build has them."""

    name: str = "flash-attention 3"
    family: str = "FlashAttention 3"

    def unavailable(self) -> str | None:
        return why_not_loaded("flash_attn_interface", _FUNCTION)

    def unsupported(self, case: Case) -> str | None:
        return None

    def prepare(self, operands: Operands) -> Attend:
        module = load("flash_attn_interface")
        arguments: dict[str, Any] = {"cache_seqlens": operands.held}
        if operands.table is not None:
            arguments["page_table"] = operands.table
        if hasattr(module, "get_scheduler_metadata"):
            arguments["scheduler_metadata"] = _metadata(module.get_scheduler_metadata, operands)
        return _attend(module.flash_attn_with_kvcache, operands, arguments)


def _metadata(function: Any, operands: Operands) -> Any:
    """Builds differ in what they take beside the sizes; what is left out has the kernel's own default."""
    case = operands.case
    page = case.layout.page_size
    keys = case.capacity if page is None else case.pages_per_sequence * page
    wanted = {"qkv_dtype": case.torch_dtype, "page_size": page, "causal": False, "num_splits": 0}
    known = inspect.signature(function).parameters
    options = {name: value for name, value in wanted.items() if name in known}
    return function(case.batch, 1, keys, case.query_heads, case.kv_heads, case.head_dim, operands.held, **options)


def _attend(function: Any, operands: Operands, arguments: dict[str, Any]) -> Attend:
    case = operands.case
    paged = operands.table is not None

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not paged:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        out = function(as_rows(q), k, v, softmax_scale=case.scale, causal=False, **arguments)
        result: Tensor = out.view(case.batch, case.query_heads, case.head_dim)
        return result

    return attend
