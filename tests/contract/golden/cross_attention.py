"""A Whisper decoder layer: self-attention on a static cache, then cross-attention on keys that nobody writes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind

from .graph import Draw, Golden, Inputs, heads_first

BATCH, HEADS, DIM, CAPACITY, ENCODED = 2, 4, 16, 24, 20


def decoder_layer(
    hidden: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, cross_keys: Tensor, cross_values: Tensor,
    held: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    queries = torch.arange(1, device=held.device) + held
    positions = torch.arange(CAPACITY, device=held.device)
    mask = (positions[None, None, None, :] <= queries[None, None, :, None]).expand(BATCH, -1, 1, CAPACITY)
    q = hidden.view(BATCH, 1, -1, DIM).transpose(1, 2).contiguous()
    at = torch.arange(1, device=held.device) + held
    held.add_(1)
    keys.index_copy_(2, at, k)
    values.index_copy_(2, at, v)
    self_attention = functional.scaled_dot_product_attention(
        q, keys, values, attn_mask=mask, dropout_p=0.0, scale=1.0, is_causal=False
    )
    q = (hidden * 0.5).view(BATCH, 1, -1, DIM).transpose(1, 2).contiguous()
    cross_attention = functional.scaled_dot_product_attention(
        q, cross_keys, cross_values, attn_mask=None, dropout_p=0.0, scale=1.0, is_causal=False
    )
    return self_attention, cross_attention


def _steps() -> Sequence[Inputs]:
    draw = Draw(5)
    inputs = {
        "hidden": draw.normal(BATCH, 1, HEADS * DIM),
        "k": draw.normal(BATCH, HEADS, 1, DIM),
        "v": draw.normal(BATCH, HEADS, 1, DIM),
        "keys": draw.normal(BATCH, HEADS, CAPACITY, DIM),
        "values": draw.normal(BATCH, HEADS, CAPACITY, DIM),
        "cross_keys": draw.normal(BATCH, HEADS, ENCODED, DIM),
        "cross_values": draw.normal(BATCH, HEADS, ENCODED, DIM),
    }
    inputs["held"] = torch.tensor(6, device=inputs["hidden"].device)
    return [inputs] * 2


def _spec(kv_len: int, mask: MaskKind) -> AttentionSpec:
    return AttentionSpec(
        batch=BATCH,
        query_heads=HEADS,
        kv_heads=HEADS,
        q_len=1,
        kv_len=kv_len,
        head_dim=DIM,
        value_dim=DIM,
        dtype=torch.float32,
        scale=1.0,
        key_layout=heads_first(HEADS, kv_len, DIM),
        value_layout=heads_first(HEADS, kv_len, DIM),
        mask=mask,
        mask_dtype=torch.bool if mask is MaskKind.BOOL else None,
    )


GOLDEN = (Golden("whisper", decoder_layer, _steps, (_spec(CAPACITY, MaskKind.BOOL), _spec(ENCODED, MaskKind.NONE))),)
