"""Static sliding-window caches of transformers in each of their regimes: filling, becoming full, and full.

One new token is written in place while the cache fills and rolled in when it is full. Several may overrun it: then the
attention is over the cache and all of them, and the cache keeps what is newest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind, TensorLayout

from .graph import DEVICE, Draw, Golden, Inputs, heads_first

BATCH, HEADS, KV_HEADS, WINDOW, DIM, SCALE = 2, 4, 2, 12, 16, 0.25


def _attend(q: Tensor, keys: Tensor, values: Tensor, first_query: int | Tensor, first_key: int | Tensor) -> Tensor:
    """Each query sees the WINDOW keys up to its own. Positions count from the beginning of the text."""
    queries = (torch.arange(q.shape[2], device=q.device) + first_query)[:, None]
    positions = torch.arange(keys.shape[2], device=q.device) + first_key
    mask = ((positions <= queries) & (positions > queries - WINDOW))[None, None]
    mask = mask.expand(q.shape[0], -1, -1, -1)
    return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=SCALE, enable_gqa=True)


def filling(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, held: Tensor) -> Tensor:
    """There is room for all."""
    at = torch.arange(k.shape[2], device=q.device) + held
    first_query = held.clone()
    held.add_(k.shape[2])
    keys.index_copy_(2, at, k)
    values.index_copy_(2, at, v)
    return _attend(q, keys, values, first_query, 0)


def _overrun(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, old: slice, first: int | Tensor) -> Tensor:
    """Attention to ``old`` keys of the cache, of which the first is at ``first``, and to all new ones."""
    whole = [torch.cat((cache[:, :, old], new), dim=-2) for cache, new in ((keys, k), (values, v))]
    for cache, states in zip((keys, values), whole, strict=True):
        cache.copy_(states[:, :, -WINDOW:])
    return _attend(q, *whole, first + whole[0].shape[2] - q.shape[2], first)


def becoming_full(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, held: Tensor) -> Tensor:
    """Of WINDOW places all but two are taken."""
    held.add_(k.shape[2])
    return _overrun(q, k, v, keys, values, slice(0, WINDOW - 2), 0)


def full(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, held: Tensor) -> Tensor:
    """The oldest key is out of sight."""
    first = held - WINDOW + 1
    held.add_(k.shape[2])
    return _overrun(q, k, v, keys, values, slice(1, None), first)


def rolling(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, held: Tensor) -> Tensor:
    """Everything moves one place, and the new key goes last."""
    first_query = held.clone()
    held.add_(1)
    last = torch.tensor([-1], dtype=torch.int64, device=q.device)
    for cache, new in ((keys, k), (values, v)):
        rolled = cache.roll(-1, dims=-2)
        rolled[:, :, last] = new
        cache.copy_(rolled)
    return _attend(q, keys, values, first_query, first_query - WINDOW + 1)


def _steps(q_len: int, held: int, count: int) -> Callable[[], Sequence[Inputs]]:
    """``count`` steps on the same cache, of other queries, keys and values each."""

    def steps() -> Sequence[Inputs]:
        draw = Draw(held)
        shared = {name: draw.normal(BATCH, KV_HEADS, WINDOW, DIM) for name in ("keys", "values")}
        shared["held"] = torch.tensor(held, device=DEVICE)
        return [
            {
                "q": draw.normal(BATCH, HEADS, q_len, DIM),
                "k": draw.normal(BATCH, KV_HEADS, q_len, DIM),
                "v": draw.normal(BATCH, KV_HEADS, q_len, DIM),
                **shared,
            }
            for _ in range(count)
        ]

    return steps


def all_regimes(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, held: Tensor, regime: str) -> Tensor:
    """As a model goes through them. Which it is, is known before the step."""
    return {"filling": filling, "becoming_full": becoming_full, "full": full, "rolling": rolling}[regime](
        q, k, v, keys, values, held
    )


def _through_all() -> Sequence[Inputs]:
    """Three tokens a step, then one: the cache of 12 holds 4, 7, 10, 13, 16, 17 and 18."""
    many, one = _steps(3, 4, 4)(), _steps(1, 4, 2)()
    shared = {name: many[0][name] for name in ("keys", "values", "held")}
    regimes = ("filling", "filling", "becoming_full", "full", "rolling", "rolling")
    return [{**step, **shared, "regime": regime} for step, regime in zip((*many, *one), regimes, strict=True)]


def _spec(q_len: int, kv_len: int = WINDOW) -> AttentionSpec:
    layout: TensorLayout = heads_first(KV_HEADS, kv_len, DIM)
    return AttentionSpec(
        batch=BATCH,
        query_heads=HEADS,
        kv_heads=KV_HEADS,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=DIM,
        value_dim=DIM,
        dtype=torch.float32,
        scale=SCALE,
        key_layout=layout,
        value_layout=layout,
        mask=MaskKind.BOOL,
        mask_dtype=torch.bool,
        mask_per_row=q_len > 1,
    )


_REGIMES = (_spec(3), _spec(3, WINDOW + 1), _spec(3, WINDOW + 2), _spec(1))

ROLLING = Golden("sliding_rolling", rolling, _steps(1, WINDOW, 3), (_REGIMES[3],))
GOLDEN = (
    Golden("sliding_filling", filling, _steps(3, 4, 2), (_REGIMES[0],)),
    Golden("sliding_becoming_full", becoming_full, _steps(3, WINDOW - 2, 1), (_REGIMES[1],)),
    Golden("sliding_full", full, _steps(3, WINDOW + 1, 3), (_REGIMES[2],)),
    ROLLING,
    Golden("sliding_all_regimes", all_regimes, _through_all, _REGIMES),
)
