"""Operands of a key's specs, laid out as a lowered graph would pass them to the launch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recognize.bounds import mask_bounds
from ..spec import AttentionSpec, MaskKind, TensorLayout

NAN = math.nan
# NaN rows before and after a cache: the largest tile. In elements, a multiple of what allocations are aligned to.
BAND_ROWS = 256
BAND_ALIGNMENT = 256


@dataclass(frozen=True)
class Operands:
    """One attention; shapes as in AttentionSpec, the mask not expanded.

    ``k`` and ``v`` are finite throughout. In ``stale_k`` and ``stale_v``, which a kernel is given, every key outside
    the range that some query of the sequence sees holds NaN: it must not be let in.
    """

    spec: AttentionSpec
    q: Tensor
    k: Tensor
    v: Tensor
    stale_k: Tensor
    stale_v: Tensor
    mask: Tensor | None
    bounds: Tensor | None
    sink: Tensor | None

    @property
    def is_causal(self) -> bool:
        return self.spec.is_causal

    @property
    def scale(self) -> float:
        return self.spec.scale

    @property
    def softcap(self) -> float | None:
        return self.spec.softcap

    def expanded_mask(self) -> Tensor | None:
        """As the launch takes it: (batch, query_heads, q_len, kv_len), stride 0 where broadcast."""
        spec = self.spec
        return None if self.mask is None else self.mask.expand(spec.batch, spec.query_heads, spec.q_len, spec.kv_len)


def random_cache(spec: AttentionSpec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Normal K and V in the layouts of ``spec``."""
    return (
        _strided(spec, spec.head_dim, spec.key_layout, generator),
        _strided(spec, spec.value_dim, spec.value_layout, generator),
    )


def random_queries(spec: AttentionSpec, generator: torch.Generator) -> Tensor:
    shape = (spec.batch, spec.query_heads, spec.q_len, spec.head_dim)
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
    sink = random_sink(spec, generator)
    return Operands(spec, queries, k, v, _poisoned(k, stale), _poisoned(v, stale), mask, bounds, sink)


def _edge_weight(seen: Tensor) -> Tensor:
    """What the values of a sequence's first and last key are multiplied by, so that neither is missed unnoticed among
    many: about half of what the others add up to. Any more, and the rounding of one weight would be most of the error,
    where the error bound counts on many."""
    return (seen.float().sqrt() / 2).clamp(min=1.0)


def _strided(spec: AttentionSpec, dim: int, layout: TensorLayout, generator: torch.Generator) -> Tensor:
    shape = (spec.batch, spec.kv_heads, spec.kv_len, dim)
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
    band = math.ceil(BAND_ROWS * tensor.stride(2) / BAND_ALIGNMENT) * BAND_ALIGNMENT
    storage = torch.full((_elements(tensor) + 2 * band,), NAN, dtype=tensor.dtype, device=tensor.device)
    copy = storage.as_strided(tensor.shape, tensor.stride(), band)
    _distinct(copy).copy_(_distinct(tensor)).masked_fill_(stale[:, None, :, None], NAN)
    return copy


def _elements(tensor: Tensor) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
