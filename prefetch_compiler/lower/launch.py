"""Run one decode attention: allocate the output and scratch, launch the kernels."""

from __future__ import annotations

import torch

from ..config import KernelConfig, Merge
from ..device import DeviceProfile, profile
from ..spec import AS_THE_DTYPE_SAYS, QUANTISED_FORMATS, Storage
from .latent_call import latent_call
from .quantised_call import quantised_call
from .specialise import DecodeTensors, KernelCall, decode_call, merge_call, scratch_shapes


def empty_output(q: torch.Tensor, value_dim: int, heads_first: bool) -> torch.Tensor:
    """An uninitialised (batch, query_heads, q_len, value_dim) output in the memory order that the graph expects."""
    batch, heads, q_len, _ = q.shape
    if heads_first:
        return q.new_empty((batch, heads, q_len, value_dim))
    return q.new_empty((batch, q_len, heads, value_dim)).transpose(1, 2)


def empty_lse(q: torch.Tensor) -> torch.Tensor:
    """An uninitialised log-sum-exp of each row: float32 (batch, query_heads, q_len)."""
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def allocate(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    bounds: torch.Tensor | None,
    heads_first: bool,
    config: KernelConfig,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    k_zero: torch.Tensor | None = None,
    v_zero: torch.Tensor | None = None,
    storage: Storage = AS_THE_DTYPE_SAYS,
    rope: torch.Tensor | None = None,
) -> DecodeTensors:
    """Operands plus freshly allocated output and scratch. CUDA-graph safe: all memory comes from torch's allocator."""
    batch, query_heads, q_len, _ = q.shape
    kv_heads, value_dim = k.shape[1], storage.columns(v.shape[3])
    out = empty_output(q, value_dim, heads_first)
    partial = stats = arrivals = None
    shapes = scratch_shapes(batch, kv_heads, query_heads // kv_heads * q_len, value_dim, config)
    if shapes is not None:
        partial = torch.empty(shapes[0], dtype=torch.float32, device=q.device)
        stats = torch.empty(shapes[1], dtype=torch.float32, device=q.device)
        if config.merge is Merge.INPLACE:
            arrivals = torch.zeros(shapes[2], dtype=torch.int32, device=q.device)
    k_scale, k_zero = expanded_scales(k_scale, k_zero, k)
    v_scale, v_zero = expanded_scales(v_scale, v_zero, k)
    return DecodeTensors(
        q, k, v, mask, bounds, out, partial, stats, arrivals, k_scale, v_scale, lengths, table, sink, lse, k_zero,
        v_zero, storage, rope,
    )  # fmt: skip


def expanded_scales(
    scale: torch.Tensor | None, zero: torch.Tensor | None, cache: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Scale and zero of K or V as kernels take them: the cache's first three sizes, stride 0 where one is shared; where
    either is of groups, (batch, kv_heads, rows, columns), as many rows and columns as the one has that has most."""
    shape = tuple(cache.shape[:3])
    given = [one for one in (scale, zero) if one is not None]
    if any(one.ndim == 4 for one in given):
        scale, zero = (one[..., None] if one is not None and one.ndim == 3 else one for one in (scale, zero))
        grids = [one.shape[2:] for one in (scale, zero) if one is not None and one.ndim == 4]
        shape = (*shape[:2], max(grid[0] for grid in grids), max(grid[1] for grid in grids))
    expanded = (None if one is None else one.expand(shape) for one in (scale, zero))
    return next(expanded), next(expanded)


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
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    k_zero: torch.Tensor | None = None,
    v_zero: torch.Tensor | None = None,
    storage: Storage = AS_THE_DTYPE_SAYS,
    rope: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(cap(q k^T * scale) + mask) v, reading only the keys inside ``bounds``, or the first ``lengths``.

    Args:
        q, k, v: as in AttentionSpec; the last stride is 1.
        k_scale, v_scale: of a quantised cache, as in AttentionSpec; or None.
        mask: (batch, query_heads, q_len, kv_len), stride 0 where broadcast; bool or float; or None.
        bounds: int32 (1|batch, 4) from ``mask_bounds``; None for all keys.
        lengths: int32 or int64 (batch,), adjacent, where ``mask`` and ``bounds`` are None. ``is_causal`` is among the
            last ``q_len`` keys of each then.
        heads_first: memory order of the result.
        table: int32 (batch, pages of a sequence), its last stride 1, where K and V are page pools; there are lengths
            then. Entries of pages beyond a length may be anything.
        softcap: cap(x) is softcap * tanh(x / softcap), or x where it is None.
        sink: (query_heads,) adjacent logits of a key without a value, or None.
        lse: as ``empty_lse`` makes it, to be written too, or None.
        k_zero, v_zero: of a quantised cache, as in AttentionSpec, or None; ``storage`` says which way they count.
        rope: rotary keys of a latent cache, whose ``k`` and ``v`` are both its latents; or None.

    Returns:
        (batch, query_heads, q_len, value_dim) in q's dtype.
    """
    tensors = allocate(
        q, k, v, mask, bounds, heads_first, config, k_scale=k_scale, v_scale=v_scale, lengths=lengths, table=table,
        sink=sink, lse=lse, k_zero=k_zero, v_zero=v_zero, storage=storage, rope=rope,
    )  # fmt: skip
    if tensors.out.numel() > 0:
        launch_kernels(tensors, is_causal=is_causal, scale=scale, softcap=softcap, config=config)
    return tensors.out


def launch_kernels(
    tensors: DecodeTensors, *, is_causal: bool, scale: float, softcap: float | None = None, config: KernelConfig
) -> None:
    """Write ``tensors.out`` and ``tensors.lse``, using up its scratch memory; arrival counters must be 0."""
    for call in calls_of(tensors, is_causal=is_causal, scale=scale, softcap=softcap, config=config):
        call.launch()


def calls_of(
    tensors: DecodeTensors,
    *,
    is_causal: bool,
    scale: float,
    softcap: float | None = None,
    config: KernelConfig,
    device: DeviceProfile | None = None,
) -> list[KernelCall]:
    """Every kernel that one launch runs, in order. ``device`` is what the kernels are for, where that is not what the
    tensors are on."""
    if tensors.rope is not None:
        decode = latent_call(tensors, tensors.rope, is_causal=is_causal, scale=scale, softcap=softcap, config=config)
    elif tensors.k.dtype in QUANTISED_FORMATS:
        device = profile(tensors.q.device) if device is None else device
        decode = quantised_call(
            tensors, is_causal=is_causal, scale=scale, softcap=softcap, config=config, device=device
        )
    else:
        decode = decode_call(tensors, is_causal=is_causal, scale=scale, softcap=softcap, config=config)
    merge = merge_call(tensors, is_causal=is_causal, softcap=softcap, config=config)
    return [decode] if merge is None else [decode, merge]
