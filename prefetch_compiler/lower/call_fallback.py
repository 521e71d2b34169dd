"""What serves a called attention where no kernel does: pages gathered, numbers dequantised, and PyTorch's SDPA, or two
matmuls where there is a soft cap or a sink, which SDPA does not know."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..paging import in_one_piece
from ..quantisation import dequantise
from ..reference import same_dtype_attention, same_dtype_lse
from .call import AttentionCall


def plain_attention(call: AttentionCall, lse: Tensor | None = None) -> Tensor:
    """The same in plain PyTorch, in the queries' dtype. Keys outside of bounds or lengths count as 0 and as hidden,
    whatever is stored there: NaN may be. The log-sum-exp is written into ``lse`` where that is given."""
    inside, mask, is_causal = _inside(call), call.mask, call.is_causal
    key = _cache(call, call.k, call.k_scale, call.k_zero, call.stored_as.key_minima, inside)
    value = _cache(call, call.v, call.v_scale, call.v_zero, call.stored_as.value_minima, inside)
    if call.lengths is not None:
        mask, is_causal = _mask_of_lengths(call, call.lengths), False
    elif inside is not None:
        mask = _restricted(mask, inside[:, None, None, :])
    if mask is not None and mask.is_floating_point():
        mask = mask.to(call.q.dtype)
    if lse is not None:
        lse.copy_(
            same_dtype_lse(
                call.q, key, mask, is_causal=is_causal, scale=call.scale, softcap=call.softcap, sink=call.sink
            )
        )
    if call.softcap is not None or call.sink is not None:
        return same_dtype_attention(
            call.q, key, value, mask, is_causal=is_causal, scale=call.scale, softcap=call.softcap, sink=call.sink
        )
    out = F.scaled_dot_product_attention(
        call.q, key, value, attn_mask=mask, is_causal=is_causal, scale=call.scale, enable_gqa=True
    )
    if mask is not None and mask.dtype == torch.bool:
        # A row that sees nothing: what SDPA makes of it depends on its backend.
        out = out.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return out.contiguous()


def _inside(call: AttentionCall) -> Tensor | None:
    """Bool (1|batch, kv_len): the keys that any query may see; None for all."""
    position = torch.arange(call.kv_len, device=call.q.device)
    if call.lengths is not None:
        return position < call.lengths[:, None]
    if call.bounds is not None:
        return (position >= call.bounds[:, :1]) & (position < call.bounds[:, 1:2])
    return None


def _cache(
    call: AttentionCall, stored: Tensor, scale: Tensor | None, zero: Tensor | None, minima: bool, inside: Tensor | None
) -> Tensor:
    if call.table is not None and inside is not None:
        # Entries beyond a length may lead nowhere.
        table = call.table.masked_fill(~inside[:, :: stored.shape[2]], 0)
        stored = in_one_piece(stored, table)
        scale, zero = (_tokens_in_one_piece(one, table) for one in (scale, zero))
    cache = stored
    if stored.dtype != call.q.dtype:
        cache = dequantise(stored, scale, call.q.dtype, zero, minima=minima, packing=call.stored_as.packing)
    return cache if inside is None else cache.masked_fill(~inside[:, None, :, None], 0.0)


def _tokens_in_one_piece(scale: Tensor | None, table: Tensor) -> Tensor | None:
    """Scales or zeros of tokens gathered; others as they are."""
    of_tokens = scale is not None and scale.ndim == 3 and scale.shape[0] > 1
    return in_one_piece(scale, table) if scale is not None and of_tokens else scale


def _mask_of_lengths(call: AttentionCall, lengths: Tensor) -> Tensor:
    """Bool (batch, 1, 1|q_len, kv_len)."""
    position = torch.arange(call.kv_len, device=lengths.device)
    ends = lengths.clamp(0, call.kv_len)[:, None, None, None]
    if call.is_causal:
        ends = ends + (torch.arange(call.q.shape[2], device=lengths.device) - (call.q.shape[2] - 1))[:, None]
    return position < ends


def _restricted(mask: Tensor | None, inside: Tensor) -> Tensor:
    if mask is None:
        return inside
    if mask.dtype == torch.bool:
        return mask & inside
    return mask.masked_fill(~inside, float("-inf"))
