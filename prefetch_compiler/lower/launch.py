"""Run one decode attention: allocate the output and scratch, launch the kernels."""

from __future__ import annotations

import torch

from ..config import KernelConfig, Merge
from .specialise import DecodeTensors, decode_call, merge_call, scratch_shapes


def empty_output(q: torch.Tensor, value_dim: int, heads_first: bool) -> torch.Tensor:
    """An uninitialised (batch, query_heads, q_len, value_dim) output in the memory order that the graph expects."""
    batch, heads, q_len, _ = q.shape
    if heads_first:
        return q.new_empty((batch, heads, q_len, value_dim))
    return q.new_empty((batch, q_len, heads, value_dim)).transpose(1, 2)


def allocate(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    bounds: torch.Tensor | None,
    heads_first: bool,
    config: KernelConfig,
    sink: torch.Tensor | None = None,
) -> DecodeTensors:
    """Operands plus freshly allocated output and scratch. CUDA-graph safe: all memory comes from torch's allocator."""
    batch, query_heads, q_len, _ = q.shape
    kv_heads, value_dim = k.shape[1], v.shape[3]
    out = empty_output(q, value_dim, heads_first)
    partial = stats = arrivals = None
    shapes = scratch_shapes(batch, kv_heads, query_heads // kv_heads * q_len, value_dim, config)
    if shapes is not None:
        partial = torch.empty(shapes[0], dtype=torch.float32, device=q.device)
        stats = torch.empty(shapes[1], dtype=torch.float32, device=q.device)
        if config.merge is Merge.INPLACE:
            arrivals = torch.zeros(shapes[2], dtype=torch.int32, device=q.device)
    return DecodeTensors(q, k, v, mask, bounds, out, partial, stats, arrivals, sink)


def launch_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    bounds: torch.Tensor | None,
    *,
    is_causal: bool,
    scale: float,
    heads_first: bool,
    config: KernelConfig,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(cap(q k^T * scale) + mask) v, reading only the keys inside ``bounds``.

    Args:
        q, k, v: as in AttentionSpec; the last stride is 1.
        mask: (batch, query_heads, q_len, kv_len), stride 0 where broadcast; bool or float; or None.
        bounds: int32 (1|batch, 4) from ``mask_bounds``; None for all keys.
        heads_first: memory order of the result.
        softcap: cap(x) is softcap * tanh(x / softcap), or x where it is None.
        sink: (query_heads,) logits of a key without a value, or None.

    Returns:
        (batch, query_heads, q_len, value_dim) in q's dtype.
    """
    tensors = allocate(q, k, v, mask, bounds, heads_first, config, sink)
    if tensors.out.numel() > 0:
        launch_kernels(tensors, is_causal=is_causal, scale=scale, softcap=softcap, config=config)
    return tensors.out


def launch_kernels(
    tensors: DecodeTensors, *, is_causal: bool, scale: float, softcap: float | None = None, config: KernelConfig
) -> None:
    """Write ``tensors.out``, using up its scratch memory; arrival counters must be 0."""
    decode_call(tensors, is_causal=is_causal, scale=scale, softcap=softcap, config=config).launch()
    merge = merge_call(tensors, is_causal=is_causal, softcap=softcap, config=config)
    if merge is not None:
        merge.launch()
