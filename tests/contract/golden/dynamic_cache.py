"""A growing cache: ``cat`` with the new key, SDPA with ``enable_gqa``, lengths symbolic from the second step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind

from .graph import Draw, Golden, Inputs, heads_first

BATCH, HEADS, KV_HEADS, DIM, HELD = 2, 4, 2, 16, 6


def growing(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    keys, values = torch.cat([keys, k], dim=-2), torch.cat([values, v], dim=-2)
    return functional.scaled_dot_product_attention(
        q, keys, values, attn_mask=None, dropout_p=0.0, scale=0.25, is_causal=False, enable_gqa=True
    )


def growing_left_padded(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, padding: Tensor) -> Tensor:
    """With padding there is a mask, and with a mask transformers repeats the heads itself."""
    keys, values = torch.cat([keys, k], dim=-2), torch.cat([values, v], dim=-2)
    mask = padding.to(torch.bool)[:, None, None, :].expand(-1, -1, q.shape[2], -1)
    group = q.shape[1] // keys.shape[1]
    batch, heads, length, dim = keys.shape
    keys = keys[:, :, None].expand(batch, heads, group, length, dim).reshape(batch, heads * group, length, dim)
    values = values[:, :, None].expand(batch, heads, group, length, dim).reshape(batch, heads * group, length, dim)
    return functional.scaled_dot_product_attention(
        q, keys, values, attn_mask=mask, dropout_p=0.0, scale=0.25, is_causal=False
    )


def two_caches_under_one_mask(
    q: Tensor, keys: Tensor, values: Tensor, other_keys: Tensor, other_values: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """A mask of one column says nothing about how many keys there are."""
    first = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=0.25, enable_gqa=True)
    return first, functional.scaled_dot_product_attention(
        q, other_keys, other_values, attn_mask=mask, scale=0.25, enable_gqa=True
    )


def _two_cache_steps() -> Sequence[Inputs]:
    """Of different lengths, then by chance of equal ones when the symbolic graph is compiled, then different again."""
    draw = Draw(4)
    mask = torch.ones(BATCH, 1, 1, 1, dtype=torch.bool)
    steps = []
    for length, other in ((6, 9), (8, 8), (7, 12), (12, 7)):
        shapes = {"q": (HEADS, 1), "keys": (KV_HEADS, length), "values": (KV_HEADS, length)}
        shapes |= {"other_keys": (KV_HEADS, other), "other_values": (KV_HEADS, other)}
        inputs = {name: draw.normal(BATCH, *shape, DIM) for name, shape in shapes.items()}
        steps.append({**inputs, "mask": mask.to(inputs["q"].device)})
    return steps


def _steps() -> Sequence[Inputs]:
    draw = Draw(3)
    return [
        {
            "q": draw.normal(BATCH, HEADS, 1, DIM),
            "k": draw.normal(BATCH, KV_HEADS, 1, DIM),
            "v": draw.normal(BATCH, KV_HEADS, 1, DIM),
            "keys": draw.normal(BATCH, KV_HEADS, HELD + step, DIM),
            "values": draw.normal(BATCH, KV_HEADS, HELD + step, DIM),
        }
        for step in range(4)
    ]


def _padded_steps() -> Sequence[Inputs]:
    steps = []
    for inputs in _steps():
        padding = torch.ones(BATCH, inputs["keys"].shape[2] + 1, dtype=torch.int64)
        padding[1, :3] = 0
        steps.append({**inputs, "padding": padding.to(inputs["q"].device)})
    return steps


def _spec(kv_len: int, mask: MaskKind = MaskKind.NONE, symbolic: bool = False) -> AttentionSpec:
    return AttentionSpec(
        batch=BATCH,
        query_heads=HEADS,
        kv_heads=KV_HEADS,
        q_len=1,
        kv_len=kv_len,
        head_dim=DIM,
        value_dim=DIM,
        dtype=torch.float32,
        scale=0.25,
        key_layout=heads_first(KV_HEADS, kv_len, DIM),
        value_layout=heads_first(KV_HEADS, kv_len, DIM),
        mask=mask,
        mask_dtype=torch.bool if mask is MaskKind.BOOL else None,
        symbolic=frozenset({"kv_len"} if symbolic else ()),
    )


def _two_graphs(mask: MaskKind = MaskKind.NONE) -> tuple[AttentionSpec, AttentionSpec]:
    """The first step's graph has constant lengths; the second's is compiled with symbols and serves all later steps."""
    return _spec(HELD + 1, mask), _spec(HELD + 2, mask, symbolic=True)


GOLDEN = (
    Golden("llama_dynamic", growing, _steps, _two_graphs()),
    Golden(
        "two_caches_under_one_mask",
        two_caches_under_one_mask,
        _two_cache_steps,
        (_spec(6, MaskKind.BOOL), _spec(9, MaskKind.BOOL), *[_spec(8, MaskKind.BOOL, symbolic=True)] * 2),
    ),
    Golden("llama_dynamic_left_padded", growing_left_padded, _padded_steps, _two_graphs(MaskKind.BOOL)),
)
