"""One run of a configuration against the oracle, before a stale record is trusted under ``strict``.

A smoke test that takes milliseconds beside compiling the kernel, which is needed anyway; tuning verifies far more. The
problem has the spec's head counts, dims, dtype, mask class, layout and alignment; batch and capacity are cut, so that K
and V together take 16 MiB at most. Its numbers are always the same.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..config import KernelConfig
from ..database.key import key_of
from ..error_bound import yardstick
from ..recognize.bounds import mask_bounds
from ..spec import AttentionSpec, MaskKind, TensorLayout
from .launch import launch_decode

MAX_BATCH = 2
MAX_CACHE_BYTES = 16 << 20
# One for each query and key; a mask may have as many values.
MAX_SCORES = 1 << 22
# Tiles for each split: enough to fill the longest pipeline and to drain it.
_TILES_PER_SPLIT = 10
# Keys beyond the last whole tile.
_TAIL = 5
_SEED = 20_240_601


@dataclass(frozen=True)
class _Problem:
    """Operands as in AttentionSpec; the mask is expanded to four dimensions."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float
    softcap: float | None
    sink: Tensor | None


@lru_cache(maxsize=64)
def why_wrong(spec: AttentionSpec, config: KernelConfig, device: torch.device) -> str | None:
    """What is wrong with ``config`` on ``device`` for specs like ``spec``, or None. Never raises."""
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    try:
        # Inductor runs its passes under a fake-tensor mode, in which nothing is computed.
        with on_device, _disable_current_modes(), torch.no_grad():
            share = _error_share(small(spec, config), config, device)
    except Exception as error:
        return f"the quick check failed with {type(error).__name__}: {error}"
    return None if share <= 1 else f"the quick check found errors {share:.3g} times as large as they may be"


def small(spec: AttentionSpec, config: KernelConfig) -> AttentionSpec:
    """``spec`` with batch and capacity cut down, in a cache of the same layout and alignment."""
    batch = min(spec.batch, MAX_BATCH)
    in_memory = MAX_CACHE_BYTES * spec.batch // (spec.kv_bytes_per_key * batch)
    in_time = MAX_SCORES // (batch * spec.query_heads * spec.q_len)
    wanted = _TILES_PER_SPLIT * config.num_splits * config.block_kv + _TAIL
    whole = key_of(spec).at(batch=batch, capacity=max(1, min(spec.kv_len, wanted, in_memory, in_time))).spec()
    return replace(
        whole,
        q_len=spec.q_len,
        scale=spec.scale,
        softcap=spec.softcap,
        out_heads_first=spec.out_heads_first,
        symbolic=frozenset(),
    )


def _error_share(spec: AttentionSpec, config: KernelConfig, device: torch.device) -> float:
    """The largest error over its bound."""
    problem = _problem(spec, device)
    bounds = None if problem.mask is None else mask_bounds(problem.mask, spec.kv_len)
    result = launch_decode(
        problem.q, problem.k, problem.v, problem.mask, bounds,
        is_causal=spec.is_causal, scale=spec.scale, heads_first=spec.out_heads_first, config=config,
        softcap=problem.softcap, sink=problem.sink,
    )  # fmt: skip
    return yardstick(problem).share(result)


def _problem(spec: AttentionSpec, device: torch.device) -> _Problem:
    generator = torch.Generator().manual_seed(_SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, spec.dtype)

    def cache(dim: int, layout: TensorLayout) -> Tensor:
        shape = (spec.batch, spec.kv_heads, spec.kv_len, dim)
        empty = torch.empty_strided(shape, (*layout.strides, 1), dtype=spec.dtype, device=device)
        if 0 in layout.strides:
            # One cache for all sequences: what is written for the last is what the first reads too.
            empty[:1].copy_(normal(1, *shape[1:]))
            return empty
        return empty.copy_(normal(*shape))

    q = normal(spec.batch, spec.query_heads, spec.q_len, spec.head_dim)
    k, v = cache(spec.head_dim, spec.key_layout), cache(spec.value_dim, spec.value_layout)
    sink = normal(spec.query_heads) if spec.sink else None
    return _Problem(q, k, v, _mask(spec, generator, device), spec.is_causal, spec.scale, spec.softcap, sink)


def _mask(spec: AttentionSpec, generator: torch.Generator, device: torch.device) -> Tensor | None:
    """Hides the end of each sequence, as a cache that is partly filled does, and some keys before it."""
    if spec.mask is MaskKind.NONE:
        return None
    rows = (spec.query_heads, spec.q_len) if spec.mask_per_row else (1, 1)
    shape = (spec.batch, *rows, spec.kv_len)
    held = torch.tensor([max(1, spec.kv_len * (4 - row % 4) // 4) for row in range(spec.batch)])
    visible = torch.rand(shape, generator=generator) < 0.9
    visible &= torch.arange(spec.kv_len) < held[:, None, None, None]
    if spec.mask is MaskKind.BOOL:
        mask = visible
    else:
        mask = torch.randn(shape, generator=generator).masked_fill(~visible, float("-inf")).to(spec.mask_dtype)
    return mask.to(device).expand(spec.batch, spec.query_heads, spec.q_len, spec.kv_len)
