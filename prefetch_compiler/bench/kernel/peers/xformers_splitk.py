"""xformers: its Triton split-K operator, over a padded block-diagonal mask made from the lengths.

All sequences are one long row of keys, which a cache with positions outermost, or a page pool, is without a copy.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..cases import CacheLayout, Case
from ..operands import Operands
from .peer import Attend, UnsupportedCaseError, load, why_not_loaded

_MODULE = "xformers.ops.fmha"


@dataclass(frozen=True)
class XformersSplitK:
    name: str = "xformers split-k"
    family: str = "xformers"

    def unavailable(self) -> str | None:
        # Built without its C++ extensions, which its Triton operator does not need, it warns over several lines.
        logging.getLogger("xformers").setLevel(logging.ERROR)
        return why_not_loaded(f"{_MODULE}.triton_splitk", "FwOp")

    def unsupported(self, case: Case) -> str | None:
        return "heads outermost: its keys must be one row" if case.layout is CacheLayout.BHSD else None

    def prepare(self, operands: Operands) -> Attend:
        fmha, operator = load(_MODULE), load(f"{_MODULE}.triton_splitk").FwOp
        bias = _bias(operands)
        case = operands.case

        def inputs(q: Tensor, k: Tensor, v: Tensor) -> Any:
            query = q.view(1, case.batch, case.kv_heads, case.group, case.head_dim)
            key, value = _one_row(k, operands), _one_row(v, operands)
            if case.group == 1:
                query, key, value = query[:, :, :, 0], key[:, :, :, 0], value[:, :, :, 0]
            return fmha.Inputs(query=query, key=key, value=value, attn_bias=bias, scale=case.scale)

        refused = operator.not_supported_reasons(inputs(operands.q, *operands.caches[0]))
        if refused:
            raise UnsupportedCaseError("; ".join(refused))

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out, _ = operator.apply(inputs(q, k, v), needs_gradient=False)
            result: Tensor = out.reshape(case.batch, case.query_heads, case.head_dim)
            return result

        return attend


def _bias(operands: Operands) -> Any:
    case = operands.case
    page = case.layout.page_size
    padding = case.capacity if page is None else case.pages_per_sequence * page
    biases = importlib.import_module(f"{_MODULE}.attn_bias")
    bias = biases.BlockDiagonalPaddedKeysMask.from_seqlens(
        q_seqlen=[1] * case.batch, kv_padding=padding, kv_seqlen=list(operands.lengths), device=operands.q.device
    )
    if operands.table is None:
        return bias
    return bias.make_paged(
        block_tables=operands.table, page_size=page, paged_type=biases.PagedBlockDiagonalPaddedKeysMask
    )


def _one_row(x: Tensor, operands: Operands) -> Tensor:
    """(1, all positions, kv_heads, group, head_dim), its heads expanded; a view."""
    case = operands.case
    stored = x if operands.table is not None else x.transpose(1, 2)
    row = stored.view(1, -1, case.kv_heads, 1, case.head_dim)
    return row.expand(1, -1, case.kv_heads, case.group, case.head_dim)
