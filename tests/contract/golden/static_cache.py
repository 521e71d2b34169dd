"""Static caches of transformers: an in-place write at a position held on the device, then SDPA under a bool mask.

With repeat-KV (Llama and most others), without (GPT-2), with one KV head that SDPA broadcasts (Falcon), with a padding
mask gathered and ANDed in (a left-padded batch), and with a sliding window (Mistral, Gemma3), filling and full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind

from .graph import Draw, Golden, Inputs, heads_first, repeat_kv

BATCH, CAPACITY, DIM, HEADS = 2, 24, 16, 4


def _positions(q_len: int, held: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of queries (1, 1, q_len, 1) and keys (1, 1, 1, CAPACITY), as transformers' mask code makes them."""
    queries = torch.arange(q_len, device=held.device) + held
    keys = torch.arange(CAPACITY, device=held.device) + 0
    return queries[None, None, :, None], keys[None, None, None, :]


def _write(keys: Tensor, values: Tensor, held: Tensor, k: Tensor, v: Tensor) -> None:
    at = torch.arange(k.shape[2], device=held.device) + held
    held.add_(k.shape[2])
    keys.index_copy_(2, at, k)
    values.index_copy_(2, at, v)


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    group = q.shape[1] // keys.shape[1] if keys.shape[1] > 1 else 1
    key, value = repeat_kv(keys, group), repeat_kv(values, group)
    return functional.scaled_dot_product_attention(
        q, key, value, attn_mask=mask, dropout_p=0.0, scale=scale, is_causal=False
    )


def causal(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, held: Tensor) -> Tensor:
    """Mask from the length before the write; SDPA after the length has moved on."""
    queries, positions = _positions(q.shape[2], held)
    mask = (positions <= queries).expand(q.shape[0], -1, q.shape[2], CAPACITY)
    _write(keys, values, held, k, v)
    return _attend(q, keys, values, mask, 0.25)


def default_scale(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, held: Tensor) -> Tensor:
    """Falcon gives no scale, and reshapes nothing."""
    queries, positions = _positions(q.shape[2], held)
    mask = (positions <= queries).expand(q.shape[0], -1, q.shape[2], CAPACITY)
    _write(keys, values, held, k, v)
    return _attend(q, keys, values, mask)


def two_layers(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, keys_1: Tensor, values_1: Tensor, held: Tensor
) -> tuple[Tensor, Tensor]:
    """Two layers that share a mask; the second writes at its own position."""
    queries, positions = _positions(q.shape[2], held)
    mask = (positions <= queries).expand(q.shape[0], -1, q.shape[2], CAPACITY)
    at = held.clone()
    _write(keys, values, held, k, v)
    first = _attend(q, keys, values, mask, 0.25)
    _write(keys_1, values_1, at, v, k)
    return first, _attend(-q, keys_1, values_1, mask, 0.25)


def left_padded(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, held: Tensor, padding: Tensor) -> Tensor:
    """``padding`` (batch, length so far) is padded to the capacity, gathered and ANDed in."""
    padding = functional.pad(padding.to(torch.bool), (0, CAPACITY - padding.shape[1]))
    batch = torch.arange(q.shape[0], device=q.device)[:, None, None, None]
    queries, positions = _positions(q.shape[2], held)
    mask = queries.new_ones((), dtype=torch.bool) & (positions <= queries).to(q.device)
    mask = (mask & padding[batch, positions].to(q.device)).expand(q.shape[0], -1, q.shape[2], CAPACITY)
    _write(keys, values, held, k, v)
    return _attend(q, keys, values, mask, 0.25)


def sliding(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, held: Tensor) -> Tensor:
    """A window of 5 keys while the cache fills."""
    queries, positions = _positions(q.shape[2], held)
    mask = queries.new_ones((), dtype=torch.bool) & (positions > queries - 5) & (positions <= queries)
    mask = mask.expand(q.shape[0], -1, q.shape[2], CAPACITY)
    _write(keys, values, held, k, v)
    return _attend(q, keys, values, mask, 0.0625)


def rolling(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, held: Tensor) -> Tensor:
    """A full sliding cache: everything moves one place, the newest key goes last, the mask is all true."""
    queries, positions = _positions(q.shape[2], held)
    positions = positions + (held - CAPACITY + 1)
    mask = ((positions > queries - CAPACITY) & (positions <= queries)).expand(q.shape[0], -1, q.shape[2], CAPACITY)
    last = torch.tensor([-1], dtype=torch.int64, device=q.device)
    new_keys, new_values = keys.roll(-1, dims=-2), values.roll(-1, dims=-2)
    new_keys[:, :, last] = k
    new_values[:, :, last] = v
    keys.copy_(new_keys)
    values.copy_(new_values)
    return _attend(q, keys, values, mask, 0.0625)


def _inputs(kv_heads: int, held: int, q_len: int = 1, layers: int = 1) -> dict[str, Tensor]:
    draw = Draw(kv_heads)
    inputs = {
        "q": draw.normal(BATCH, HEADS, q_len, DIM),
        "k": draw.normal(BATCH, kv_heads, q_len, DIM),
        "v": draw.normal(BATCH, kv_heads, q_len, DIM),
        "held": torch.tensor(held, device=draw.normal(1).device),
    }
    for layer in range(layers):
        suffix = f"_{layer}" if layer else ""
        inputs[f"keys{suffix}"] = draw.normal(BATCH, kv_heads, CAPACITY, DIM)
        inputs[f"values{suffix}"] = draw.normal(BATCH, kv_heads, CAPACITY, DIM)
    return inputs


def _repeated(kv_heads: int, held: int, q_len: int = 1, layers: int = 1) -> Callable[[], Sequence[Inputs]]:
    """Three calls on the same caches."""
    return lambda: [_inputs(kv_heads, held, q_len, layers)] * 3


def _padded_steps() -> Sequence[Inputs]:
    """The padding mask grows by one column each step; sequence 1 starts with three padding tokens."""
    shared = _inputs(2, 6)
    padding = torch.ones(BATCH, CAPACITY, dtype=torch.int64)
    padding[1, :3] = 0
    return [{**shared, "padding": padding[:, : 7 + step].to(shared["q"].device)} for step in range(3)]


def _spec(kv_heads: int, scale: float, q_len: int = 1) -> AttentionSpec:
    return AttentionSpec(
        batch=BATCH,
        query_heads=HEADS,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=CAPACITY,
        head_dim=DIM,
        value_dim=DIM,
        dtype=torch.float32,
        scale=scale,
        key_layout=heads_first(kv_heads, CAPACITY, DIM),
        value_layout=heads_first(kv_heads, CAPACITY, DIM),
        mask=MaskKind.BOOL,
        mask_dtype=torch.bool,
        mask_per_row=q_len > 1,
    )


LLAMA = Golden("llama_static", causal, _repeated(2, 6), (_spec(2, 0.25),))

GOLDEN = (
    LLAMA,
    Golden("llama_static_speculative", causal, _repeated(2, 6, q_len=4), (_spec(2, 0.25, q_len=4),)),
    Golden("llama_static_two_layers", two_layers, _repeated(2, 6, layers=2), (_spec(2, 0.25),) * 2),
    Golden("llama_static_left_padded", left_padded, _padded_steps, (_spec(2, 0.25),) * 2),
    Golden("gpt2_static", causal, _repeated(4, 6), (_spec(4, 0.25),)),
    Golden("falcon_static", default_scale, _repeated(1, 6), (_spec(1, 0.25),)),
    Golden("mistral_sliding_filling", sliding, _repeated(2, 9), (_spec(2, 0.0625),)),
    Golden("mistral_sliding_full", rolling, _repeated(2, 40), (_spec(2, 0.0625),)),
)
