"""Operands of a key's specs, laid out as a lowered graph would pass them to the launch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..quantisation import dequantise, quantise
from ..recognize.bounds import mask_bounds
from ..spec import QUANTISED_FORMATS, AttentionSpec, MaskKind, QuantisedCache, ScaleGranularity, TensorLayout

NAN = math.nan
# NaN rows before and after a cache: the largest tile. In elements, a multiple of what allocations are aligned to.
BAND_ROWS = 256
BAND_ALIGNMENT = 256
# What stands for NaN in a quantised cache: NaN in e4m3 and in e5m2. int8 has none.
NAN_BYTE = 0x7F
# Scales per token differ by as many octaves, as those of tokens with outliers do.
SCALE_OCTAVES = 4


@dataclass(frozen=True)
class Operands:
    """One attention; shapes as in AttentionSpec, the mask not expanded.

    ``k`` and ``v`` are finite throughout; of a quantised cache they are the dequantised numbers, exactly, in float64.
    In ``stale_k`` and ``stale_v``, which a kernel is given, every key outside the range that some query of the sequence
    sees holds NaN, and so do its scales: it must not be let in.
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

    @property
    def is_causal(self) -> bool:
        return self.spec.is_causal

    @property
    def scale(self) -> float:
        return self.spec.scale

    def expanded_mask(self) -> Tensor | None:
        """As the launch takes it: (batch, query_heads, q_len, kv_len), stride 0 where broadcast."""
        spec = self.spec
        return None if self.mask is None else self.mask.expand(spec.batch, spec.query_heads, spec.q_len, spec.kv_len)


class Cache(NamedTuple):
    """K and V as they are stored, and the scales of a quantised cache, as the launch takes them."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


def random_cache(spec: AttentionSpec, generator: torch.Generator, value_weights: Tensor | None = None) -> Cache:
    """Normal K and V in the layouts of ``spec``. ``value_weights`` (batch, keys) multiply the values."""
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
        (spec.head_dim, spec.key_layout, cache.key_scales, None),
        (spec.value_dim, spec.value_layout, cache.value_scales, value_weights),
    )
    stored, scales = [], []
    for dim, layout, granularity, weights in sides:
        batch = 1 if layout.batch_stride == 0 else spec.batch
        x = torch.empty(batch, spec.kv_heads, spec.kv_len, dim, device=generator.device).normal_(generator=generator)
        if granularity is ScaleGranularity.TOKEN:
            octaves = torch.empty(x.shape[:3], device=generator.device).uniform_(generator=generator) * SCALE_OCTAVES
            x *= torch.exp2(octaves - SCALE_OCTAVES / 2)[..., None]
        if weights is not None:
            x *= weights[:, None, :, None]
        numbers, scale = quantise(x, cache.dtype, granularity, cache.scale_dtype or torch.float32)
        stored.append(_laid_out(numbers, spec, dim, layout))
        scales.append(scale)
    return Cache(stored[0], stored[1], scales[0], scales[1])


def _laid_out(numbers: Tensor, spec: AttentionSpec, dim: int, layout: TensorLayout) -> Tensor:
    """One-byte ``numbers`` in memory as ``layout`` says."""
    shape, strides = (spec.batch, spec.kv_heads, spec.kv_len, dim), (*layout.strides, 1)
    bytes_ = torch.zeros(_elements(shape, strides), dtype=torch.uint8, device=numbers.device)
    view = bytes_.as_strided(shape, strides)
    _distinct(view).copy_(numbers.view(torch.uint8))
    return bytes_.view(numbers.dtype).as_strided(shape, strides)


def random_queries(spec: AttentionSpec, generator: torch.Generator) -> Tensor:
    shape = (spec.batch, spec.query_heads, spec.q_len, spec.head_dim)
    return torch.empty(shape, dtype=spec.dtype, device=generator.device).normal_(generator=generator)


def prefix_mask(spec: AttentionSpec, held: int, device: torch.device) -> Tensor | None:
    """``held`` keys visible to every query, in the shape of the spec's mask: (batch, 1 or heads, 1 or q, keys)."""
    visible = torch.arange(spec.kv_len, device=device) < held
    return mask_of(spec, visible.expand(spec.batch, spec.kv_len))


def ragged_mask(spec: AttentionSpec, device: torch.device) -> Tensor | None:
    """Prefixes of every length in equal steps up to the capacity, half of it on average, in a fixed random order."""
    order = torch.randperm(spec.batch, generator=torch.Generator().manual_seed(0)).to(device)
    held = torch.ceil((order + 0.5) * (spec.kv_len / spec.batch))
    return mask_of(spec, torch.arange(spec.kv_len, device=device) < held[:, None])


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
    bounds = None if mask is None else mask_bounds(mask, spec.kv_len)
    first, end = _seen(spec, bounds, generator.device)
    position = torch.arange(spec.kv_len, device=generator.device)
    stale = (position < first) | (position >= end)
    weights = None
    if spec.key_layout.batch_stride == 0:
        stale = stale.all(0, keepdim=True)
    else:
        edges = (position == first) | (position == end - 1)
        weights = torch.where(edges, _edge_weight(end - first), 1.0)
    k, v, k_scale, v_scale = random_cache(spec, generator, weights)
    queries = random_queries(spec, generator)
    stale_k, stale_v = _poisoned(k, stale), _poisoned(v, stale)
    if spec.cache is None:
        return Operands(spec, queries, k, v, stale_k, stale_v, mask, bounds)
    exact_k, exact_v = dequantise(k, k_scale, torch.float64), dequantise(v, v_scale, torch.float64)
    k_scale, v_scale = _poisoned_scale(k_scale, stale), _poisoned_scale(v_scale, stale)
    return Operands(spec, queries, exact_k, exact_v, stale_k, stale_v, mask, bounds, k_scale, v_scale)


def _edge_weight(seen: Tensor) -> Tensor:
    """What the values of a sequence's first and last key are multiplied by, so that neither is missed unnoticed among
    many: about half of what the others add up to. Any more, and the rounding of one weight would be most of the error,
    where the error bound counts on many."""
    return (seen.float().sqrt() / 2).clamp(min=1.0)


def _strided(spec: AttentionSpec, dim: int, layout: TensorLayout, generator: torch.Generator) -> Tensor:
    shape = (spec.batch, spec.kv_heads, spec.kv_len, dim)
    strides = (*layout.strides, 1)
    storage = torch.empty(_elements(shape, strides), dtype=spec.dtype, device=generator.device).normal_(
        generator=generator
    )
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
    band = math.ceil(BAND_ROWS * tensor.stride(2) / BAND_ALIGNMENT) * BAND_ALIGNMENT
    dtype, nan = (torch.uint8, NAN_BYTE) if tensor.dtype in QUANTISED_FORMATS else (tensor.dtype, NAN)
    shape, strides = tensor.shape, tensor.stride()
    storage = torch.full((_elements(shape, strides) + 2 * band,), nan, dtype=dtype, device=tensor.device)
    copy = storage.as_strided(shape, strides, band)
    _distinct(copy).copy_(_distinct(tensor).view(dtype)).masked_fill_(stale[:, None, :, None], nan)
    return storage.view(tensor.dtype).as_strided(shape, strides, band)


def _poisoned_scale(scale: Tensor | None, stale: Tensor) -> Tensor | None:
    if scale is None or scale.ndim == 0 or scale.shape[2] == 1:
        return scale
    return scale.masked_fill(stale[:, None, :], NAN)


def _elements(shape: Sequence[int], strides: Sequence[int]) -> int:
    """From the first to the last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
