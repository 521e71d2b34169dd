"""The operands of a group: a case a sequence, each of its own kind and length, and the same seen by the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...config import KernelConfig
from ...device import interpreting
from ...quantisation import quantise_for
from ...recognize.bounds import mask_bounds
from ...spec import AS_THE_DTYPE_SAYS, AttentionSpec, MaskKind, Storage
from .contents import KINDS, OF_LATENTS, RESCALING, Kind, denormal_values


@dataclass(frozen=True)
class Cases:
    """Shapes as in AttentionSpec. ``k`` and ``v`` are the numbers of a cache in one piece, in float64 where it is
    quantised, and ``mask`` (batch, 1|heads, 1|q_len, kv_len) says what each query sees, whatever a kernel is told it
    by. The others are what a launch takes."""

    spec: AttentionSpec
    kinds: tuple[str, ...]
    held: tuple[int, ...]
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor
    stored_k: Tensor
    stored_v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None
    k_zero: Tensor | None = None
    v_zero: Tensor | None = None
    rope: Tensor | None = None
    table: Tensor | None = None
    sink: Tensor | None = None

    @property
    def lengths(self) -> Tensor | None:
        if self.spec.mask is not MaskKind.LENGTHS:
            return None
        return torch.tensor(self.held, dtype=torch.int32, device=self.q.device)

    @property
    def launched_mask(self) -> Tensor | None:
        return self.mask if self.spec.masked else None

    @property
    def bounds(self) -> Tensor | None:
        return mask_bounds(self.mask, self.spec.kv_len) if self.spec.masked else None

    @property
    def storage(self) -> Storage:
        return AS_THE_DTYPE_SAYS if self.spec.cache is None else self.spec.cache.storage


def edge_lengths(config: KernelConfig, capacity: int) -> tuple[int, ...]:
    """Lengths at which a tile, a split or the cache is empty, one short, exact, or one over."""
    tiles = range(config.block_kv, capacity + 1, config.block_kv)
    per_split = -(-capacity // config.num_splits)
    edges = [0, 1, 2, capacity, *tiles, *range(per_split, capacity, per_split)]
    around = {edge + step for edge in edges for step in (-1, 0, 1)}
    return tuple(sorted(length for length in around if 0 <= length <= capacity))


def build(
    spec: AttentionSpec, config: KernelConfig, seed: int, device: torch.device, kinds: tuple[Kind, ...] | None = None
) -> Cases:
    """As many cases as ``spec`` has sequences: ``kinds``, or all that the spec can have, in turn, and lengths at edges,
    then at random."""
    generator = torch.Generator(device).manual_seed(seed)
    chosen = _kinds(spec) if kinds is None else kinds
    held = _held(spec, config, generator, len(chosen))

    def drawn(*shape: int) -> Tensor:
        return torch.empty(shape, device=device).normal_(generator=generator)

    q = drawn(spec.batch, spec.query_heads, spec.q_len, spec.query_dim)
    k = drawn(spec.batch, spec.kv_heads, spec.kv_len, spec.query_dim)
    v = k[..., : spec.head_dim] if spec.rope_dim else drawn(spec.batch, spec.kv_heads, spec.kv_len, spec.value_dim)
    for number, kind in enumerate(chosen):
        rows = slice(number, None, len(chosen))
        kind(q[rows], k[rows], v[rows], spec.dtype)
    q = q.to(spec.dtype)
    mask = _mask(spec, held, generator)
    sink = drawn(spec.query_heads).to(spec.dtype) if spec.sink else None
    names = tuple(chosen[case % len(chosen)].__name__ for case in range(spec.batch))
    return _stored(spec, Cases(spec, names, held, q, k, v, mask, k, v, sink=sink), seed)


def _kinds(spec: AttentionSpec) -> tuple[Kind, ...]:
    if interpreting() and spec.dtype is torch.bfloat16 and spec.cache is None and not spec.rope_dim:
        # Triton 3.6's interpreter makes other numbers of bfloat16's denormal ones as it loads them.
        return tuple(kind for kind in KINDS if kind is not denormal_values)
    if spec.rope_dim:
        return OF_LATENTS
    # Sequences of a quantised cache may share scales, which have the range of their own dtype.
    return KINDS if spec.cache is None else tuple(kind for kind in KINDS if kind not in RESCALING)


def _held(spec: AttentionSpec, config: KernelConfig, generator: torch.Generator, kinds: int) -> tuple[int, ...]:
    """Kinds come round in turn, and every round has the next length: all of both meet in time."""
    edges = edge_lengths(config, spec.kv_len)
    drawn = torch.randint(0, spec.kv_len + 1, (spec.batch,), generator=generator, device=generator.device).tolist()
    held = []
    for case in range(spec.batch):
        turn, kind = divmod(case, kinds)
        place = turn + kind * 5
        held.append(edges[place % len(edges)] if turn < 2 * len(edges) else drawn[case])
    return tuple(held)


def _mask(spec: AttentionSpec, held: Sequence[int], generator: torch.Generator) -> Tensor:
    device = generator.device
    lengths = torch.tensor(held, device=device)[:, None, None, None]
    rows = (spec.query_heads, spec.q_len) if spec.mask_per_row else (1, 1)
    key = torch.arange(spec.kv_len, device=device)
    if spec.mask is MaskKind.LENGTHS:
        behind = torch.arange(spec.q_len - 1, -1, -1, device=device)[:, None]
        return key < lengths - (behind if spec.is_causal else 0)
    visible = (key < lengths).expand(spec.batch, *rows, spec.kv_len)
    if spec.mask_per_row:
        visible = visible & (torch.rand(visible.shape, generator=generator, device=device) < 0.7)
    if spec.mask is MaskKind.BOOL:
        return visible.contiguous()
    bias = torch.empty(visible.shape, device=device).normal_(generator=generator)
    return bias.masked_fill(~visible, float("-inf")).to(spec.mask_dtype)


def _stored(spec: AttentionSpec, cases: Cases, seed: int) -> Cases:
    if spec.cache is not None:
        cases = _quantised(spec, cases)
    elif spec.rope_dim:
        k = cases.k.to(spec.dtype)
        latents = k[..., : spec.head_dim].contiguous()
        rope = k[..., spec.head_dim :].contiguous()
        cases = replace(cases, k=k, v=latents, stored_k=latents, stored_v=latents, rope=rope)
    else:
        k, v = cases.k.to(spec.dtype), cases.v.to(spec.dtype)
        cases = replace(cases, k=k, v=v, stored_k=k, stored_v=v)
    if not spec.page_size:
        return cases
    pages = torch.randperm(spec.batch * spec.kv_len // spec.page_size, generator=torch.Generator().manual_seed(seed))
    table = pages.view(spec.batch, -1).to(cases.q.device, torch.int32)
    pools = (_in_pages(cache, table, spec.page_size) for cache in (cases.stored_k, cases.stored_v))
    return replace(cases, stored_k=next(pools), stored_v=next(pools), table=table)


def _quantised(spec: AttentionSpec, cases: Cases) -> Cases:
    assert spec.cache is not None
    k, v = quantise_for(spec.cache, "key", cases.k), quantise_for(spec.cache, "value", cases.v)
    return replace(
        cases, k=k.dequantised(k.numbers), v=v.dequantised(v.numbers), stored_k=k.numbers, stored_v=v.numbers,
        k_scale=k.scale, v_scale=v.scale, k_zero=k.zero, v_zero=v.zero,
    )  # fmt: skip


def _in_pages(cache: Tensor, table: Tensor, page_size: int) -> Tensor:
    """(batch, kv_heads, kv_len, dim) as a pool (pages, kv_heads, page_size, dim), where ``table`` says."""
    pages = cache.unflatten(2, (-1, page_size)).transpose(1, 2).flatten(0, 1)
    numbers = pages.view(torch.uint8) if cache.element_size() == 1 else pages
    pool = torch.empty_like(numbers)
    pool[table.flatten().long()] = numbers
    return pool.view(cache.dtype)
