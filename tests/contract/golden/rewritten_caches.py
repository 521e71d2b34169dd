"""Caches seen through windows, and caches that change while attention is on its way to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind

from .graph import Draw, Golden, Inputs, heads_first, repeat_kv

BATCH, HEADS, KV_HEADS, CAPACITY, DIM, WINDOW = 2, 4, 2, 24, 16, 20


def written_after_the_repeat(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Repeat-KV copies, so SDPA must not see what is written to the cache after it."""
    k, v = repeat_kv(keys, 2), repeat_kv(values, 2)
    keys.index_copy_(2, torch.arange(3, device=q.device), q[:, :KV_HEADS].expand(-1, -1, 3, -1))
    values.mul_(2.0)
    return functional.scaled_dot_product_attention(q, k, v)


def written_after_the_view(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """A view copies nothing, so SDPA must see what is written to the cache after it."""
    k, v = keys.transpose(1, 2).transpose(1, 2), values[:, :, :]
    keys.index_copy_(2, torch.arange(3, device=q.device), q[:, :KV_HEADS].expand(-1, -1, 3, -1))
    values.mul_(2.0)
    return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def written_through_the_view(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What is written through a window of the cache is in the cache."""
    window = keys[:, :, 1 : 1 + WINDOW]
    window[:, :, 2] = q[:, :KV_HEADS, 0]
    values[:, :, 3].zero_()
    return functional.scaled_dot_product_attention(q, repeat_kv(keys, 2), repeat_kv(values, 2))


def written_between_layers(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Two attentions on one cache, which changes between them."""
    first = functional.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
    keys.index_copy_(2, torch.arange(3, device=q.device), q[:, :KV_HEADS].expand(-1, -1, 3, -1))
    return first, functional.scaled_dot_product_attention(q, keys, values, enable_gqa=True)


def mask_between_layers(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Two attentions under one mask tensor, which changes between them."""
    mask = torch.arange(CAPACITY, device=q.device)[None, None, None] < 4
    first = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
    mask[..., 10:15] = True
    return first, functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)


def first_keys(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The first WINDOW keys of a larger cache, repeated."""
    k, v = repeat_kv(keys[:, :, :WINDOW], 2), repeat_kv(values[:, :, :WINDOW], 2)
    return functional.scaled_dot_product_attention(q, k, v)


def one_layer_of_many(q: Tensor, cache: Tensor) -> Tensor:
    """All layers' keys and values in one tensor (layers, 2, batch, heads, length, dim)."""
    keys, values = cache[1].unbind(0)
    return functional.scaled_dot_product_attention(q, keys, values, enable_gqa=True)


def shared_by_the_batch(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One sequence's keys serve every query of the batch."""
    return functional.scaled_dot_product_attention(q, keys, values, enable_gqa=True)


def _steps() -> Sequence[Inputs]:
    draw = Draw(7)
    return [
        {
            "q": draw.normal(BATCH, HEADS, 1, DIM),
            "keys": draw.normal(BATCH, KV_HEADS, CAPACITY, DIM),
            "values": draw.normal(BATCH, KV_HEADS, CAPACITY, DIM),
        }
    ]


def _layered_steps() -> Sequence[Inputs]:
    draw = Draw(8)
    return [{"q": draw.normal(BATCH, HEADS, 1, DIM), "cache": draw.normal(3, 2, BATCH, KV_HEADS, CAPACITY, DIM)}]


def _shared_steps() -> Sequence[Inputs]:
    (inputs,) = _steps()
    return [{**inputs, "keys": inputs["keys"][:1].clone(), "values": inputs["values"][:1].clone()}]


_SPEC = AttentionSpec(
    batch=BATCH,
    query_heads=HEADS,
    kv_heads=KV_HEADS,
    q_len=1,
    kv_len=CAPACITY,
    head_dim=DIM,
    value_dim=DIM,
    dtype=torch.float32,
    scale=0.25,
    key_layout=heads_first(KV_HEADS, CAPACITY, DIM),
    value_layout=heads_first(KV_HEADS, CAPACITY, DIM),
)
_MASKED = replace(_SPEC, mask=MaskKind.BOOL, mask_dtype=torch.bool)
MASK_BETWEEN_LAYERS = Golden("mask_between_layers", mask_between_layers, _steps, (_MASKED,) * 2)

GOLDEN = (
    Golden("written_after_the_repeat", written_after_the_repeat, _steps, (_SPEC,)),
    Golden("written_after_the_view", written_after_the_view, _steps, (_SPEC,)),
    Golden("written_through_the_view", written_through_the_view, _steps, (_SPEC,)),
    Golden("written_between_layers", written_between_layers, _steps, (_SPEC,) * 2),
    MASK_BETWEEN_LAYERS,
    Golden("first_keys", first_keys, _steps, (replace(_SPEC, kv_len=WINDOW),)),
    Golden("one_layer_of_many", one_layer_of_many, _layered_steps, (_SPEC,)),
    Golden(
        "shared_by_the_batch",
        shared_by_the_batch,
        _shared_steps,
        # The queries of all sequences are one group.
        (replace(_SPEC, batch=1, query_heads=BATCH * HEADS),),
    ),
)
