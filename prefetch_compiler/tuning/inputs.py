"""Operands of a key's specs, laid out as a lowered graph would pass them to the launch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..recognize.bounds import length_bounds, mask_bounds
from ..spec import AttentionSpec, MaskKind, TensorLayout

NAN = math.nan
# NaN rows before and after a cache: the largest tile. In elements, a multiple of what allocations are aligned to.
BAND_ROWS = 256
BAND_ALIGNMENT = 256


@dataclass(frozen=True)
class Operands:
    """One attention; shapes as in AttentionSpec, the mask not expanded.

    ``k`` and ``v`` are finite throughout. In ``stale_k`` and ``stale_v``, which a kernel is given, every key outside
    the range that some query of the sequence sees holds NaN: it must not be let in. Of a paged cache these two are
    pools, with a ``table`` whose stale entries lead nowhere; ``mask`` then says to others what its lengths say.
    """

    spec: AttentionSpec
    q: Tensor
    k: Tensor
    v: Tensor
    stale_k: Tensor
    stale_v: Tensor
    mask: Tensor | None
    bounds: Tensor | None
    table: Tensor | None = None

    @property
    def is_causal(self) -> bool:
        return self.spec.is_causal

    @property
    def scale(self) -> float:
        return self.spec.scale

    def expanded_mask(self) -> Tensor | None:
        """As the launch takes it: (batch, query_heads, q_len, kv_len), stride 0 where broadcast. None with pages."""
        spec = self.spec
        if self.mask is None or spec.page_size:
            return None
        return self.mask.expand(spec.batch, spec.query_heads, spec.q_len, spec.kv_len)


def random_cache(spec: AttentionSpec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Normal K and V, or pools of them, in the layouts of ``spec``."""
    return (
        _strided(spec, spec.head_dim, spec.key_layout, generator),
        _strided(spec, spec.value_dim, spec.value_layout, generator),
    )


def shuffled_table(spec: AttentionSpec, device: torch.device, seed: int = 0) -> Tensor:
    """A paged cache's table: every page of the pool once, in random order, as an allocator leaves them after a while.
    int32 (batch, pages of a sequence)."""
    order = torch.randperm(spec.cache_shape[0], generator=torch.Generator().manual_seed(seed))
    return order.view(spec.batch, -1).to(device, torch.int32)


def random_queries(spec: AttentionSpec, generator: torch.Generator) -> Tensor:
    shape = (spec.batch, spec.query_heads, spec.q_len, spec.head_dim)
    return torch.empty(shape, dtype=spec.dtype, device=generator.device).normal_(generator=generator)


def prefix_mask(spec: AttentionSpec, held: int, device: torch.device) -> Tensor | None:
    """``held`` keys visible to every query, in the shape of the spec's mask: (batch, 1 or heads, 1 or q, keys)."""
    visible = torch.arange(spec.kv_len, device=device) < held
    return mask_of(spec, visible.expand(spec.batch, spec.kv_len))


def ragged_mask(spec: AttentionSpec, device: torch.device) -> Tensor | None:
    """Prefixes of ``ragged_lengths``."""
    return mask_of(spec, torch.arange(spec.kv_len, device=device) < ragged_lengths(spec, device)[:, None])


def ragged_lengths(spec: AttentionSpec, device: torch.device) -> Tensor:
    """Lengths in equal steps up to the capacity, half of it on average, in a fixed random order: int64 (batch,)."""
    order = torch.randperm(spec.batch, generator=torch.Generator().manual_seed(0)).to(device)
    return torch.ceil((order + 0.5) * (spec.kv_len / spec.batch)).long()


def mask_of(spec: AttentionSpec, visible: Tensor, hidden_value: float = -math.inf) -> Tensor | None:
    """The spec's kind of mask, showing ``visible`` keys: bool (batch, keys), or (batch, heads, q_len, keys)."""
    if spec.mask is MaskKind.NONE:
        return None
    rows = (spec.query_heads, spec.q_len) if spec.mask_per_row else (1, 1)
    if visible.ndim == 2:
        visible = visible[:, None, None, :]
    visible = visible.expand(spec.batch, *rows, spec.kv_len).contiguous()
    if spec.mask is MaskKind.BOOL:
        return visible
    return torch.zeros(visible.shape, dtype=spec.mask_dtype, device=visible.device).masked_fill_(~visible, hidden_value)


def operands(spec: AttentionSpec, mask: Tensor | None, generator: torch.Generator) -> Operands:
    """Random operands under ``mask``, with everything that no query sees poisoned."""
    k, v = random_cache(spec, generator)
    bounds = None if mask is None else mask_bounds(mask, spec.kv_len)
    first, end = _seen(spec, bounds, generator.device)
    position = torch.arange(spec.kv_len, device=generator.device)
    stale = (position < first) | (position >= end)
    if spec.key_layout.batch_stride == 0:
        stale = stale.all(0, keepdim=True)
    else:
        edges = (position == first) | (position == end - 1)
        v.mul_(torch.where(edges, _edge_weight(end - first), 1.0)[:, None, :, None])
    queries = random_queries(spec, generator)
    return Operands(spec, queries, k, v, _poisoned(k, stale), _poisoned(v, stale), mask, bounds)


def paged_operands(spec: AttentionSpec, lengths: Tensor, generator: torch.Generator) -> Operands:
    """Random operands in shuffled pages. Poisoned is all that no length (int32 (batch,)) covers: the rest of the pages
    in use, the other pages, what lies between and around them, and the table's entries."""
    one_piece = replace(
        spec, page_size=0, key_layout=_in_one_piece(spec, spec.head_dim),
        value_layout=_in_one_piece(spec, spec.value_dim),
    )  # fmt: skip
    k, v = random_cache(one_piece, generator)
    position = torch.arange(spec.kv_len, device=generator.device)
    held = position < lengths[:, None]
    edges = (position == 0) | (position == lengths[:, None] - 1)
    v.mul_(torch.where(edges, _edge_weight(lengths[:, None]), 1.0)[:, None, :, None])
    table = shuffled_table(spec, generator.device)
    stale_k, stale_v = (
        _poisoned_pool(spec, cache, held, table, layout)
        for cache, layout in ((k, spec.key_layout), (v, spec.value_layout))
    )
    garbage = torch.randint(-(2**31), 2**31, table.shape, generator=generator, device=table.device)
    table = torch.where(held[:, :: spec.page_size], table, garbage.to(torch.int32))
    queries = random_queries(spec, generator)
    bounds = length_bounds(lengths, spec.kv_len)
    return Operands(spec, queries, k, v, stale_k, stale_v, held[:, None, None, :], bounds, table)


def _in_one_piece(spec: AttentionSpec, dim: int) -> TensorLayout:
    return TensorLayout(spec.kv_heads * spec.kv_len * dim, spec.kv_len * dim, dim)


def _poisoned_pool(spec: AttentionSpec, cache: Tensor, held: Tensor, table: Tensor, layout: TensorLayout) -> Tensor:
    """The pages of ``cache`` (batch, kv_heads, kv_len, dim) where ``table`` says, NaN where it is not ``held``."""
    pool = _poisoned_like((*spec.cache_shape, cache.shape[3]), layout, cache)
    rows = cache.masked_fill(~held[:, None, :, None], NAN).unflatten(2, (-1, spec.page_size))
    pool[table.flatten().long()] = rows.transpose(1, 2).flatten(0, 1)
    return pool


def _poisoned_like(shape: tuple[int, ...], layout: TensorLayout, like: Tensor) -> Tensor:
    """NaN in ``layout``, and so is whatever lies between its rows and around it."""
    strides = (*layout.strides, 1)
    band = math.ceil(BAND_ROWS * layout.row_stride / BAND_ALIGNMENT) * BAND_ALIGNMENT
    elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    storage = torch.full((elements + 2 * band,), NAN, dtype=like.dtype, device=like.device)
    return storage.as_strided(shape, strides, band)


def _edge_weight(seen: Tensor) -> Tensor:
    """What the values of a sequence's first and last key are multiplied by, so that neither is missed unnoticed among
    many: about half of what the others add up to. Any more, and the rounding of one weight would be most of the error,
    where the error bound counts on many."""
    return (seen.float().sqrt() / 2).clamp(min=1.0)


def _strided(spec: AttentionSpec, dim: int, layout: TensorLayout, generator: torch.Generator) -> Tensor:
    shape = (*spec.cache_shape, dim)
    strides = (*layout.strides, 1)
    elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    storage = torch.empty(elements, dtype=spec.dtype, device=generator.device).normal_(generator=generator)
    return storage.as_strided(shape, strides)


def _seen(spec: AttentionSpec, bounds: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """First key that some query of a sequence sees, and one past the last: (batch, 1) each."""
    if bounds is None:
        end = min(spec.q_len, spec.kv_len) if spec.is_causal else spec.kv_len
        return torch.zeros(spec.batch, 1, device=device), torch.full((spec.batch, 1), end, device=device)
    return bounds[:, :1].expand(spec.batch, 1), bounds[:, 1:2].expand(spec.batch, 1)


def _distinct(tensor: Tensor) -> Tensor:
    """Without the repetitions that a batch stride of 0 makes."""
    return tensor[:1] if tensor.stride(0) == 0 else tensor


def _poisoned(tensor: Tensor, stale: Tensor) -> Tensor:
    """A copy in the same layout whose stale keys are NaN, and so is whatever lies between its rows and around it."""
    copy = _poisoned_like(tuple(tensor.shape), TensorLayout(*tensor.stride()[:3]), tensor)
    _distinct(copy).copy_(_distinct(tensor)).masked_fill_(stale[:, None, :, None], NAN)
    return copy
