"""Operands of a key's specs, laid out as a lowered graph would pass them to the launch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..quantisation import dequantise, quantise_for
from ..recognize.bounds import mask_bounds
from ..spec import QUANTISED_FORMATS, AttentionSpec, MaskKind, QuantisedCache, ScaleGranularity, TensorLayout

NAN = math.nan
# NaN rows before and after a cache: the largest tile. In elements, a multiple of what allocations are aligned to.
BAND_ROWS = 256
BAND_ALIGNMENT = 256
# What stands for NaN in a quantised cache: NaN in e4m3 and in e5m2. int8 has none.
NAN_BYTE = 0x7F
# The last columns of a latent cache's latents, in which queries are 0: values may be large there, and scores are not.
WEIGHTED_COLUMNS = 8
# Scales per token differ by as many octaves, as those of tokens with outliers do.
SCALE_OCTAVES = 4


@dataclass(frozen=True)
class Operands:
    """One attention; shapes as in AttentionSpec, the mask not expanded.

    ``k`` and ``v`` are finite throughout; of a quantised cache they are the dequantised numbers, exactly, in float64.
    In ``stale_k`` and ``stale_v``, which a kernel is given, every key outside the range that some query of the sequence
    sees holds NaN, and so do its scales: it must not be let in. Of a paged cache these two are pools, with a ``table``
    whose stale entries lead nowhere. Of a latent cache these two are its latents, and ``rope`` its rotary keys, alike
    poisoned, which ``k`` has beside them. Where there are ``lengths``, ``mask`` says to others what they and
    ``is_causal`` say to a kernel.
    """

    spec: AttentionSpec
    q: Tensor
    k: Tensor
    v: Tensor
    stale_k: Tensor
    stale_v: Tensor
    mask: Tensor | None
    bounds: Tensor | None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None
    lengths: Tensor | None = None
    table: Tensor | None = None
    sink: Tensor | None = None
    k_zero: Tensor | None = None
    v_zero: Tensor | None = None
    rope: Tensor | None = None

    @property
    def is_causal(self) -> bool:
        return self.spec.is_causal and self.lengths is None

    @property
    def scale(self) -> float:
        return self.spec.scale

    @property
    def softcap(self) -> float | None:
        return self.spec.softcap

    def expanded_mask(self) -> Tensor | None:
        """As the launch takes it: (batch, query_heads, q_len, kv_len), stride 0 where broadcast. None with lengths."""
        spec = self.spec
        if self.mask is None or self.lengths is not None:
            return None
        return self.mask.expand(spec.batch, spec.query_heads, spec.q_len, spec.kv_len)


class Cache(NamedTuple):
    """K and V as they are stored, the scales and zeros of a quantised cache, and the rotary keys of a latent one, as
    the launch takes them."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None
    k_zero: Tensor | None = None
    v_zero: Tensor | None = None
    rope: Tensor | None = None


def random_cache(spec: AttentionSpec, generator: torch.Generator, value_weights: Tensor | None = None) -> Cache:
    """Normal K and V, or pools of them, in the layouts of ``spec``. ``value_weights`` (batch, keys), not of pools,
    multiply the values, those of a latent cache in its WEIGHTED_COLUMNS."""
    if spec.rope_layout is not None:
        latents = _strided(spec, spec.head_dim, spec.key_layout, generator)
        if value_weights is not None:
            latents[..., -WEIGHTED_COLUMNS:].mul_(value_weights[:, None, :, None])
        return Cache(latents, latents, rope=_strided(spec, spec.rope_dim, spec.rope_layout, generator))
    if spec.cache is not None:
        return _quantised_cache(spec, spec.cache, generator, value_weights)
    k = _strided(spec, spec.head_dim, spec.key_layout, generator)
    v = _strided(spec, spec.value_dim, spec.value_layout, generator)
    if value_weights is not None:
        v.mul_(value_weights[:, None, :, None])
    return Cache(k, v)


def _quantised_cache(
    spec: AttentionSpec, cache: QuantisedCache, generator: torch.Generator, value_weights: Tensor | None
) -> Cache:
    sides = (
        ("key", spec.head_dim, spec.key_layout, cache.key_scales, None),
        ("value", spec.value_dim, spec.value_layout, cache.value_scales, value_weights),
    )
    stored, scales, zeros = [], [], []
    for side, dim, layout, granularity, weights in sides:
        batch, *inner = spec.cache_shape
        batch = 1 if layout.batch_stride == 0 else batch
        x = torch.empty(batch, *inner, dim, device=generator.device).normal_(generator=generator)
        if granularity is ScaleGranularity.TOKEN:
            octaves = torch.empty(x.shape[:3], device=generator.device).uniform_(generator=generator) * SCALE_OCTAVES
            x *= torch.exp2(octaves - SCALE_OCTAVES / 2)[..., None]
        if weights is not None:
            x *= weights[:, None, :, None]
        quantised = quantise_for(cache, side, x)
        stored.append(_laid_out(quantised.numbers, spec, dim, layout))
        scales.append(quantised.scale)
        zeros.append(quantised.zero)
    return Cache(*stored, *scales, *zeros)


def _laid_out(numbers: Tensor, spec: AttentionSpec, dim: int, layout: TensorLayout) -> Tensor:
    """One-byte ``numbers`` in memory as ``layout`` says."""
    shape, strides = (*spec.cache_shape, spec.stored_elements(dim)), (*layout.strides, 1)
    bytes_ = torch.zeros(_elements(shape, strides), dtype=torch.uint8, device=numbers.device)
    view = bytes_.as_strided(shape, strides)
    _distinct(view).copy_(numbers.view(torch.uint8))
    return bytes_.view(numbers.dtype).as_strided(shape, strides)


def shuffled_table(spec: AttentionSpec, device: torch.device, seed: int = 0) -> Tensor:
    """A paged cache's table: every page of the pool once, in random order, as an allocator leaves them after a while.
    int32 (batch, pages of a sequence)."""
    order = torch.randperm(spec.cache_shape[0], generator=torch.Generator().manual_seed(seed))
    return order.view(spec.batch, -1).to(device, torch.int32)


def random_queries(spec: AttentionSpec, generator: torch.Generator) -> Tensor:
    shape = (spec.batch, spec.query_heads, spec.q_len, spec.query_dim)
    return torch.empty(shape, dtype=spec.dtype, device=generator.device).normal_(generator=generator)


def random_sink(spec: AttentionSpec, generator: torch.Generator) -> Tensor | None:
    """Logits that take about as much of the softmax as all keys do."""
    if not spec.sink:
        return None
    normal = torch.empty(spec.query_heads, dtype=spec.dtype, device=generator.device).normal_(generator=generator)
    return normal + math.log(spec.kv_len)


def prefix_mask(spec: AttentionSpec, held: int, device: torch.device) -> Tensor | None:
    """``held`` keys visible to every query, in the shape of the spec's mask: (batch, 1 or heads, 1 or q, keys)."""
    visible = torch.arange(spec.kv_len, device=device) < held
    return mask_of(spec, visible.expand(spec.batch, spec.kv_len))


def ragged_mask(spec: AttentionSpec, device: torch.device, order: int = 0) -> Tensor | None:
    """Prefixes of ``ragged_lengths``."""
    return mask_of(spec, torch.arange(spec.kv_len, device=device) < ragged_lengths(spec, device, order)[:, None])


def ragged_lengths(spec: AttentionSpec, device: torch.device, order: int = 0) -> Tensor:
    """Lengths in equal steps up to the capacity, half of it on average, in the ``order``-th random order: int64
    (batch,)."""
    places = torch.randperm(spec.batch, generator=torch.Generator().manual_seed(order)).to(device)
    return torch.ceil((places + 0.5) * (spec.kv_len / spec.batch)).long()


def mask_of(spec: AttentionSpec, visible: Tensor, hidden_value: float = -math.inf) -> Tensor | None:
    """The spec's kind of mask, showing ``visible`` keys: bool (batch, keys), or (batch, heads, q_len, keys)."""
    if spec.mask in (MaskKind.NONE, MaskKind.LENGTHS):
        return None
    rows = (spec.query_heads, spec.q_len) if spec.mask_per_row else (1, 1)
    if visible.ndim == 2:
        visible = visible[:, None, None, :]
    visible = visible.expand(spec.batch, *rows, spec.kv_len).contiguous()
    if spec.mask is MaskKind.BOOL:
        return visible
    return torch.zeros(visible.shape, dtype=spec.mask_dtype, device=visible.device).masked_fill_(~visible, hidden_value)


def operands(
    spec: AttentionSpec, mask: Tensor | None, generator: torch.Generator, lengths: Tensor | None = None
) -> Operands:
    """Random operands under ``mask``, or with ``lengths`` (int32 (batch,)) in its place, as the spec says. Everything
    that no query sees is poisoned; of a paged cache, whose pages are shuffled, so are its table's entries."""
    bounds = None if mask is None else mask_bounds(mask, spec.kv_len)
    first, end = _seen(spec, bounds, lengths, generator.device)
    position = torch.arange(spec.kv_len, device=generator.device)
    stale = (position < first) | (position >= end)
    one_piece = _in_one_piece(spec)
    weights = None
    if one_piece.key_layout.batch_stride == 0:
        stale = stale.all(0, keepdim=True)
    else:
        edges = (position == first) | (position == end - 1)
        weights = torch.where(edges, _edge_weight(end - first), 1.0)
    cache = random_cache(one_piece, generator, weights)
    queries = random_queries(spec, generator)
    k, v = cache.k, cache.v
    if cache.rope is not None:
        queries[..., spec.head_dim - WEIGHTED_COLUMNS : spec.head_dim] = 0
        k = torch.cat([cache.k, cache.rope], -1)
    if spec.cache is not None:
        how = spec.cache.storage
        k = dequantise(k, cache.k_scale, torch.float64, cache.k_zero, minima=how.key_minima, packing=how.packing)
        v = dequantise(v, cache.v_scale, torch.float64, cache.v_zero, minima=how.value_minima, packing=how.packing)
    table = shuffled_table(spec, generator.device) if spec.page_size else None
    given = _poisoned_cache(cache, stale) if table is None else _poisoned_pools(spec, cache, stale, table)
    if table is not None:
        table = _with_garbage(table, stale.unflatten(1, (-1, spec.page_size)).all(2), generator)
    if lengths is not None:
        mask = _mask_of_lengths(spec, lengths)
    sink = random_sink(spec, generator)
    return Operands(
        spec, queries, k, v, given.k, given.v, mask, bounds, given.k_scale, given.v_scale, lengths, table, sink,
        given.k_zero, given.v_zero, given.rope,
    )  # fmt: skip


def _mask_of_lengths(spec: AttentionSpec, lengths: Tensor) -> Tensor:
    """Bool (batch, 1, q_len, kv_len): the keys that each query sees."""
    behind = spec.q_len - 1 - torch.arange(spec.q_len, device=lengths.device) if spec.is_causal else 0
    ends = (lengths[:, None] - behind)[:, None, :, None]
    return torch.arange(spec.kv_len, device=lengths.device) < ends


def _with_garbage(table: Tensor, stale: Tensor, generator: torch.Generator) -> Tensor:
    garbage = torch.randint(-(2**31), 2**31, table.shape, generator=generator, device=table.device)
    return torch.where(stale, garbage.to(torch.int32), table)


def _in_one_piece(spec: AttentionSpec) -> AttentionSpec:
    """The same of a cache without pages."""
    if not spec.page_size:
        return spec
    layouts = (
        TensorLayout(spec.kv_heads * spec.kv_len * row, spec.kv_len * row, row)
        for row in (spec.stored_elements(dim) for dim in (spec.head_dim, spec.value_dim))
    )
    return replace(spec, page_size=0, key_layout=next(layouts), value_layout=next(layouts))


def _poisoned_cache(cache: Cache, stale: Tensor) -> Cache:
    k = _poisoned(cache.k, stale)
    if cache.rope is not None:
        return Cache(k, k, rope=_poisoned(cache.rope, stale))
    scales = (_poisoned_scale(scale, stale) for scale in (cache.k_scale, cache.v_scale, cache.k_zero, cache.v_zero))
    return Cache(k, _poisoned(cache.v, stale), *scales)


def _poisoned_pools(spec: AttentionSpec, cache: Cache, stale: Tensor, table: Tensor) -> Cache:
    """Pools of the pages of ``cache``, where ``table`` says."""
    pools = (
        _poisoned_pool(spec, one, stale, table, layout)
        for one, layout in ((cache.k, spec.key_layout), (cache.v, spec.value_layout))
    )
    scales = (_poisoned_scale_pool(spec, scale, stale, table) for scale in cache[2:])
    return Cache(*pools, *scales)


def _poisoned_pool(spec: AttentionSpec, cache: Tensor, stale: Tensor, table: Tensor, layout: TensorLayout) -> Tensor:
    pool = _poisoned_like((*spec.cache_shape, cache.shape[3]), layout, cache)
    rows = _numbers(cache).masked_fill(stale[:, None, :, None], _nan_of(cache))
    _numbers(pool)[table.flatten().long()] = _pages(spec, rows)
    return pool


def _poisoned_scale_pool(spec: AttentionSpec, scale: Tensor | None, stale: Tensor, table: Tensor) -> Tensor | None:
    if scale is None or not _of_tokens(scale):
        return scale
    pool = torch.full(spec.cache_shape, NAN, dtype=scale.dtype, device=scale.device)
    pool[table.flatten().long()] = _pages(spec, scale.masked_fill(stale[:, None, :], NAN))
    return pool


def _pages(spec: AttentionSpec, rows: Tensor) -> Tensor:
    """(batch, kv_heads, kv_len, ...) as (pages, kv_heads, page_size, ...), sequence by sequence."""
    pages: Tensor = rows.unflatten(2, (-1, spec.page_size)).transpose(1, 2).flatten(0, 1)
    return pages


def _poisoned_like(shape: tuple[int, ...], layout: TensorLayout, like: Tensor) -> Tensor:
    """NaN in ``layout``, and so is whatever lies between its rows and around it."""
    strides = (*layout.strides, 1)
    band = math.ceil(BAND_ROWS * layout.row_stride / BAND_ALIGNMENT) * BAND_ALIGNMENT
    size = _elements(shape, strides) + 2 * band
    storage = torch.full((size,), _nan_of(like), dtype=_numbers(like).dtype, device=like.device)
    return storage.view(like.dtype).as_strided(shape, strides, band)


def _edge_weight(seen: Tensor) -> Tensor:
    """What the values of a sequence's first and last key are multiplied by, so that neither is missed unnoticed among
    many: about half of what the others add up to. Any more, and the rounding of one weight would be most of the error,
    where the error bound counts on many."""
    return (seen.float().sqrt() / 2).clamp(min=1.0)


def _strided(spec: AttentionSpec, dim: int, layout: TensorLayout, generator: torch.Generator) -> Tensor:
    shape = (*spec.cache_shape, dim)
    strides = (*layout.strides, 1)
    storage = torch.empty(_elements(shape, strides), dtype=spec.dtype, device=generator.device).normal_(
        generator=generator
    )
    return storage.as_strided(shape, strides)


def _seen(
    spec: AttentionSpec, bounds: Tensor | None, lengths: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """First key that some query of a sequence sees, and one past the last: (batch, 1) each."""
    if bounds is not None:
        return bounds[:, :1].expand(spec.batch, 1), bounds[:, 1:2].expand(spec.batch, 1)
    first = torch.zeros(spec.batch, 1, device=device)
    if lengths is not None:
        return first, lengths[:, None]
    return first, torch.full_like(first, min(spec.q_len, spec.kv_len) if spec.is_causal else spec.kv_len)


def _distinct(tensor: Tensor) -> Tensor:
    """Without the repetitions that a batch stride of 0 makes."""
    return tensor[:1] if tensor.stride(0) == 0 else tensor


def _poisoned(tensor: Tensor, stale: Tensor) -> Tensor:
    """A copy in the same layout whose stale keys are NaN, and so is whatever lies between its rows and around it."""
    copy = _poisoned_like(tuple(tensor.shape), TensorLayout(*tensor.stride()[:3]), tensor)
    _distinct(_numbers(copy)).copy_(_distinct(_numbers(tensor))).masked_fill_(stale[:, None, :, None], _nan_of(tensor))
    return copy


def _poisoned_scale(scale: Tensor | None, stale: Tensor) -> Tensor | None:
    return scale.masked_fill(stale[:, None, :], NAN) if scale is not None and _of_tokens(scale) else scale


def _of_tokens(scale: Tensor) -> bool:
    return scale.ndim == 3 and scale.shape[2] > 1


def _numbers(cache: Tensor) -> Tensor:
    """As writes take them: few are defined for numbers of one byte."""
    return cache.view(torch.uint8) if cache.dtype in QUANTISED_FORMATS else cache


def _nan_of(cache: Tensor) -> float:
    return NAN_BYTE if cache.dtype in QUANTISED_FORMATS else NAN


def _elements(shape: Sequence[int], strides: Sequence[int]) -> int:
    """From the first to the last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
