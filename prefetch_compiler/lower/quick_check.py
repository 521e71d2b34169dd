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
from ..paging import in_one_piece
from ..quantisation import quantise_for
from ..recognize.bounds import mask_bounds
from ..spec import AS_THE_DTYPE_SAYS, AttentionSpec, MaskKind, TensorLayout
from .launch import launch_decode

MAX_BATCH = 2
MAX_CACHE_BYTES = 16 << 20
# One for each query and key; a mask may have as many values.
MAX_SCORES = 1 << 22
# Scores of normal queries and keys come as far. A cap of a model's own, well above them, would do next to nothing.
REACHED_SOFTCAP = 2.0
# Tiles for each split: enough to fill the longest pipeline and to drain it.
_TILES_PER_SPLIT = 10
# Keys beyond the last whole tile.
_TAIL = 5
_SEED = 20_240_601


@dataclass(frozen=True)
class _Problem:
    """Operands as in AttentionSpec; the mask is expanded to four dimensions. ``k`` and ``v`` are the numbers of
    ``stored_k`` and ``stored_v``, which differ from them where the cache is quantised or paged; those of a latent cache
    are both its latents, and ``k`` has ``rope`` beside them. Where there are ``lengths``, ``mask`` says what they and
    the spec's ``is_causal`` say to a kernel."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float
    stored_k: Tensor
    stored_v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    lengths: Tensor | None
    table: Tensor | None
    softcap: float | None
    sink: Tensor | None
    k_zero: Tensor | None = None
    v_zero: Tensor | None = None
    rope: Tensor | None = None


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
    page = spec.page_size or 1
    capacity = max(page, min(spec.kv_len, wanted, in_memory, in_time) // page * page)
    whole = key_of(spec).at(batch=batch, capacity=capacity).spec()
    return replace(
        whole,
        q_len=spec.q_len,
        scale=spec.scale,
        softcap=None if spec.softcap is None else min(spec.softcap, REACHED_SOFTCAP),
        out_heads_first=spec.out_heads_first,
        symbolic=frozenset(),
    )


def _error_share(spec: AttentionSpec, config: KernelConfig, device: torch.device) -> float:
    """The largest error over its bound."""
    problem = _problem(spec, device)
    mask = problem.mask if problem.lengths is None else None
    bounds = None if mask is None else mask_bounds(mask, spec.kv_len)
    result = launch_decode(
        problem.q, problem.stored_k, problem.stored_v, mask, bounds,
        is_causal=spec.is_causal, scale=spec.scale, heads_first=spec.out_heads_first, config=config,
        k_scale=problem.k_scale, v_scale=problem.v_scale, lengths=problem.lengths, table=problem.table,
        softcap=problem.softcap, sink=problem.sink, k_zero=problem.k_zero, v_zero=problem.v_zero,
        storage=AS_THE_DTYPE_SAYS if spec.cache is None else spec.cache.storage, rope=problem.rope,
    )  # fmt: skip
    return yardstick(problem).share(result)


def _problem(spec: AttentionSpec, device: torch.device) -> _Problem:
    generator = torch.Generator().manual_seed(_SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def cache(dim: int, layout: TensorLayout) -> tuple[Tensor, Tensor]:
        # One cache for all sequences, where they share it: what is written for the last is what the first reads too.
        pieces, *inner = spec.cache_shape
        drawn = normal(1 if 0 in layout.strides else pieces, *inner, dim)
        shape = (pieces, *inner, spec.stored_elements(dim))
        empty = torch.empty_strided(shape, (*layout.strides, 1), dtype=spec.kv_dtype, device=device)
        return drawn, empty

    q = normal(spec.batch, spec.query_heads, spec.q_len, spec.query_dim).to(device, spec.dtype)
    stored, exact, scales, zeros = [], [], [], []
    for side, dim, layout in (("key", spec.head_dim, spec.key_layout), ("value", spec.value_dim, spec.value_layout)):
        numbers, empty = cache(dim, layout)
        given = None if spec.cache is None else quantise_for(spec.cache, side, numbers.to(device))
        empty[: numbers.shape[0]].copy_(numbers if given is None else given.numbers)
        stored.append(empty)
        exact.append(empty if given is None else given.dequantised(empty))
        scales.append(None if given is None else given.scale)
        zeros.append(None if given is None else given.zero)
    (k, v), rope = exact, None
    if spec.rope_layout is not None:
        numbers, rope = cache(spec.rope_dim, spec.rope_layout)
        rope[: numbers.shape[0]].copy_(numbers)
        k, v, stored = torch.cat([stored[0], rope], -1), stored[0], [stored[0], stored[0]]
    lengths, table = _lengths_and_table(spec, generator, device)
    if table is not None:
        k, v = in_one_piece(k, table), in_one_piece(v, table)
    mask = _mask(spec, generator, device) if lengths is None else _mask_of_lengths(spec, lengths)
    is_causal = spec.is_causal and lengths is None
    sink = normal(spec.query_heads).to(device, spec.dtype) if spec.sink else None
    return _Problem(
        q, k, v, mask, is_causal, spec.scale, stored[0], stored[1], scales[0], scales[1], lengths, table, spec.softcap,
        sink, zeros[0], zeros[1], rope,
    )  # fmt: skip


def _lengths_and_table(
    spec: AttentionSpec, generator: torch.Generator, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    lengths = _held(spec).to(device, torch.int32) if spec.mask is MaskKind.LENGTHS else None
    if not spec.page_size:
        return lengths, None
    pages = torch.randperm(spec.cache_shape[0], generator=generator)
    return lengths, pages.view(spec.batch, -1).to(device, torch.int32)


def _mask_of_lengths(spec: AttentionSpec, lengths: Tensor) -> Tensor:
    behind = spec.q_len - 1 - torch.arange(spec.q_len, device=lengths.device)
    ends = lengths[:, None] - (behind if spec.is_causal else 0 * behind)
    visible = torch.arange(spec.kv_len, device=lengths.device) < ends[:, None, :, None]
    return visible.expand(spec.batch, spec.query_heads, spec.q_len, spec.kv_len)


def _held(spec: AttentionSpec) -> Tensor:
    """Keys of each sequence, as of a cache that is partly filled: int64 (batch,)."""
    return torch.tensor([max(1, spec.kv_len * (4 - row % 4) // 4) for row in range(spec.batch)])


def _mask(spec: AttentionSpec, generator: torch.Generator, device: torch.device) -> Tensor | None:
    """Hides the end of each sequence, as a cache that is partly filled does, and some keys before it."""
    if spec.mask is MaskKind.NONE:
        return None
    rows = (spec.query_heads, spec.q_len) if spec.mask_per_row else (1, 1)
    shape = (spec.batch, *rows, spec.kv_len)
    visible = torch.rand(shape, generator=generator) < 0.9
    visible &= torch.arange(spec.kv_len) < _held(spec)[:, None, None, None]
    if spec.mask is MaskKind.BOOL:
        mask = visible
    else:
        mask = torch.randn(shape, generator=generator).masked_fill(~visible, float("-inf")).to(spec.mask_dtype)
    return mask.to(device).expand(spec.batch, spec.query_heads, spec.q_len, spec.kv_len)
