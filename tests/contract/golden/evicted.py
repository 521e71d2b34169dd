"""Caches that were thinned out: heads that hold different numbers of keys, and keys without some of their channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind, TensorLayout

from .graph import DEVICE, Draw, Golden, Inputs, each_head_by_itself, heads_first, note, repeat_kv

BATCH, KV_HEADS, GROUP, KV_LEN, DIM, KEPT, BLOCK = 2, 2, 2, 24, 32, 16, 4
HEADS = KV_HEADS * GROUP


def lengths_of_heads(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """(batch, kv_heads) lengths: each head has evicted what it does not need."""
    held = torch.arange(keys.shape[2], device=q.device) < lengths[:, :, None, None]
    mask = held.repeat_interleave(GROUP, dim=1)
    return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)


def lengths_of_query_heads(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """The same by hand, and the output as o_proj reads it."""
    held = torch.arange(keys.shape[2], device=q.device) < lengths.repeat_interleave(GROUP, dim=1)[:, :, None, None]
    note(q, keys, values, held, 1 / math.sqrt(DIM), None, None)
    scores = (q @ repeat_kv(keys, GROUP).mT / math.sqrt(DIM)).masked_fill(~held, float("-inf"))
    return scores.softmax(-1) @ repeat_kv(values, GROUP)


def pruned_channels(q: Tensor, keys: Tensor, values: Tensor, channels: Tensor) -> Tensor:
    """Keys of the channels that matter; the queries give up the others. The scale is that of all."""
    return functional.scaled_dot_product_attention(
        q[..., channels], keys, values, scale=1 / math.sqrt(DIM), enable_gqa=True
    )


def channels_of_each_head(q: Tensor, keys: Tensor, values: Tensor, channels: Tensor) -> Tensor:
    """Every KV head has kept others: (kv_heads, kept)."""
    wanted = channels.repeat_interleave(GROUP, 0)[None, :, None].expand(q.shape[0], -1, q.shape[2], -1)
    return functional.scaled_dot_product_attention(
        q.gather(-1, wanted), keys, values, scale=1 / math.sqrt(DIM), enable_gqa=True
    )


def picked_blocks(q: Tensor, keys: Tensor, values: Tensor, picked: Tensor) -> Tensor:
    """(batch, kv_heads, n) blocks of BLOCK keys: the ones that each head finds worth reading."""

    def of(cache: Tensor) -> Tensor:
        blocks = cache.unflatten(2, (-1, BLOCK))
        wanted = picked[..., None, None].expand(-1, -1, -1, BLOCK, DIM)
        return blocks.gather(2, wanted).flatten(2, 3)

    return functional.scaled_dot_product_attention(q, of(keys), of(values), enable_gqa=True)


def picked_keys(q: Tensor, keys: Tensor, values: Tensor, picked: Tensor, mask: Tensor) -> Tensor:
    """(batch, kv_heads, n) single keys, of which a sequence may have fewer."""
    k, v = (torch.take_along_dim(cache, picked[..., None], 2) for cache in (keys, values))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def picked_by_products(q: Tensor, keys: Tensor, values: Tensor, picked: Tensor) -> Tensor:
    wanted = picked[..., None].expand(-1, -1, -1, DIM)
    k, v = keys.gather(2, wanted), values.gather(2, wanted)
    note(q, k, v, None, 1 / math.sqrt(DIM), None, None)
    scores = q @ repeat_kv(k, GROUP).mT / math.sqrt(DIM)
    return scores.softmax(-1) @ repeat_kv(v, GROUP)


def _steps(seed: int, key_dim: int, **more: Tensor) -> Sequence[Inputs]:
    draw = Draw(seed)
    return [
        {
            "q": draw.normal(BATCH, HEADS, 1, DIM),
            "keys": draw.normal(BATCH, KV_HEADS, KV_LEN, key_dim),
            "values": draw.normal(BATCH, KV_HEADS, KV_LEN, DIM),
            **more,
        }
    ]


def _blocks() -> Sequence[Inputs]:
    return _steps(34, DIM, picked=torch.tensor([[[0, 5], [3, 1]], [[2, 4], [4, 5]]], device=DEVICE))


def _other_blocks() -> Sequence[Inputs]:
    return _steps(34, DIM, picked=torch.tensor([[[0, 5], [0, 5]], [[0, 5], [0, 5]]], device=DEVICE))


def _picked_keys() -> Sequence[Inputs]:
    picked = torch.tensor([[[7, 20, 3], [23, 0, 11]], [[1, 2, 9], [14, 5, 6]]], device=DEVICE)
    mask = torch.tensor([[True, True, True], [True, True, False]], device=DEVICE)[:, None, None]
    (step,) = _steps(35, DIM, picked=picked)
    return [{**step, "mask": mask}]


def _keys_without_mask() -> Sequence[Inputs]:
    (step,) = _picked_keys()
    return [{name: value for name, value in step.items() if name != "mask"}]


def _lengths() -> Sequence[Inputs]:
    return _steps(31, DIM, lengths=torch.tensor([[5, 24], [17, 1]], device=DEVICE))


def _other_lengths() -> Sequence[Inputs]:
    return _steps(31, DIM, lengths=torch.tensor([[24, 5], [1, 17]], device=DEVICE))


def scaled_by_what_is_kept(q: Tensor, keys: Tensor, values: Tensor, channels: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q[..., channels], keys, values, enable_gqa=True)


def _lengths_length_first() -> Sequence[Inputs]:
    """Heads of one sequence do not end where those of the next begin."""
    (step,) = _lengths()
    stored = {name: step[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("keys", "values")}
    return [{**step, **stored}]


def _channels() -> Sequence[Inputs]:
    return _steps(32, KEPT, channels=torch.arange(1, 2 * KEPT, 2, device=DEVICE))


def _channels_of_heads() -> Sequence[Inputs]:
    channels = torch.stack([torch.arange(0, 2 * KEPT, 2), torch.arange(KEPT).flip(0)]).to(DEVICE)
    return _steps(33, KEPT, channels=channels)


_PRUNED = AttentionSpec(
    batch=BATCH,
    query_heads=HEADS,
    kv_heads=KV_HEADS,
    q_len=1,
    kv_len=KV_LEN,
    head_dim=KEPT,
    value_dim=DIM,
    dtype=torch.float32,
    scale=1 / math.sqrt(DIM),
    key_layout=heads_first(KV_HEADS, KV_LEN, KEPT),
    value_layout=heads_first(KV_HEADS, KV_LEN, DIM),
)
_EVICTED = each_head_by_itself(
    replace(
        _PRUNED,
        head_dim=DIM,
        key_layout=heads_first(KV_HEADS, KV_LEN, DIM),
        mask=MaskKind.BOOL,
        mask_dtype=torch.bool,
        mask_per_row=True,
    )
)
LENGTHS_OF_HEADS = Golden("lengths_of_heads", lengths_of_heads, _lengths, (_EVICTED,))
OTHER_LENGTHS = Golden("other_lengths_of_heads", lengths_of_heads, _other_lengths, (_EVICTED,))
LENGTH_FIRST = Golden("lengths_length_first", lengths_of_heads, _lengths_length_first, ())
KEPT_SCALE = Golden("scale_of_kept_channels", scaled_by_what_is_kept, _channels, ())
PRUNED_CHANNELS = Golden("pruned_channels", pruned_channels, _channels, (_PRUNED,))
_BLOCKS = replace(
    each_head_by_itself(
        replace(
            _PRUNED, head_dim=DIM, kv_len=2 * BLOCK, key_layout=heads_first(KV_HEADS, KV_LEN, DIM),
        )
    ),
    key_layout=TensorLayout(BLOCK * DIM, BLOCK * DIM, DIM),
    value_layout=TensorLayout(BLOCK * DIM, BLOCK * DIM, DIM),
    page_size=BLOCK,
)  # fmt: skip
_KEYS = replace(
    _BLOCKS, kv_len=3, key_layout=TensorLayout(DIM, DIM, DIM), value_layout=TensorLayout(DIM, DIM, DIM), page_size=1
)
PICKED_BLOCKS = Golden("picked_blocks", picked_blocks, _blocks, (_BLOCKS,))
OTHER_BLOCKS = Golden("other_picked_blocks", picked_blocks, _other_blocks, (_BLOCKS,))
PICKED_KEYS = Golden("picked_by_products", picked_by_products, _keys_without_mask, (_KEYS,), "recognise_softmax_chain")
GOLDEN = (
    PICKED_BLOCKS,
    Golden("picked_keys", picked_keys, _picked_keys, (replace(_KEYS, mask=MaskKind.BOOL, mask_dtype=torch.bool),)),
    PICKED_KEYS,
    LENGTHS_OF_HEADS,
    Golden("lengths_of_query_heads", lengths_of_query_heads, _lengths, (_EVICTED,), "recognise_softmax_chain"),
    PRUNED_CHANNELS,
    Golden("channels_of_each_head", channels_of_each_head, _channels_of_heads, (_PRUNED,)),
)
