"""Operands of a case on the device: the caches that launches go through in turn, and what says how full they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...recognize.bounds import length_bounds, mask_bounds
from .cases import CacheLayout, Case

# Launches of one replay read distinct caches, together this many times what L2 holds.
L2_MULTIPLE = 4
MAX_CACHES = 32
# Caches beyond the first take no more than this, nor more than this share of the free memory.
CACHES_BYTES = 4 << 30
CACHES_MEMORY_FRACTION = 0.4
# One cache, and what peers and the oracle need beside it.
CASE_MEMORY_FRACTION = 0.6


@dataclass(frozen=True)
class Operands:
    """One case, ready to launch on. All launches share the mask, lengths and page table, as a model's layers do.

    Attributes:
        lengths: keys that each sequence holds, on the host.
        q: (batch, query_heads, 1, head_dim), contiguous.
        caches: K and V of each launch in turn: (batch, kv_heads, capacity, head_dim) in the case's layout, or page
            pools (pages, page_size, kv_heads, head_dim), contiguous.
        held: ``lengths`` on the device, int32 (batch,).
        mask: bool (batch, 1, 1, capacity), True where a key is held; None for dense and for paged caches.
        bounds: int32 (batch, 4), as ``mask_bounds`` or, for paged caches, ``length_bounds`` gives them; None for others
            without a mask.
        table: page numbers, int32 (batch, pages_per_sequence), scattered; None where caches are in one piece.
    """

    case: Case
    lengths: tuple[int, ...]
    q: Tensor
    caches: tuple[tuple[Tensor, Tensor], ...]
    held: Tensor
    mask: Tensor | None
    bounds: Tensor | None
    table: Tensor | None

    @property
    def max_length(self) -> int:
        return max(self.lengths)

    def expanded_mask(self) -> Tensor | None:
        """As our launch takes it: (batch, query_heads, 1, capacity), stride 0 over heads."""
        case = self.case
        return None if self.mask is None else self.mask.expand(case.batch, case.query_heads, 1, case.capacity)

    def sequences(self, cache: int, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """K and V of some sequences of one cache: (len(chosen), kv_heads, longest of them, head_dim)."""
        rows = torch.tensor(chosen, device=self.q.device)
        longest = max(self.lengths[row] for row in chosen)
        k, v = (self._rows(tensor, rows, longest) for tensor in self.caches[cache])
        return k, v

    def _rows(self, tensor: Tensor, rows: Tensor, longest: int) -> Tensor:
        if self.table is None:
            return tensor[rows, :, :longest]
        pages = tensor[self.table[rows].long()]
        return pages.flatten(1, 2)[:, :longest].transpose(1, 2)


def cache_count(capacity_bytes: int, valid_bytes: int, l2_bytes: int, free_bytes: int) -> int:
    """Caches to go through in turn: as many as read L2 full several times, within limits, and one at least."""
    wanted = min(MAX_CACHES, max(2, math.ceil(L2_MULTIPLE * l2_bytes / max(1, valid_bytes))))
    room = min(CACHES_BYTES, int(free_bytes * CACHES_MEMORY_FRACTION))
    return max(1, min(wanted, room // max(1, capacity_bytes)))


def why_too_large(case: Case, free_bytes: int) -> str | None:
    """Why a case is skipped, or None."""
    room = int(free_bytes * CASE_MEMORY_FRACTION)
    if case.capacity_bytes <= room:
        return None
    return f"its cache takes {case.capacity_bytes / 1e9:.1f} GB and {room / 1e9:.1f} GB may be taken here"


def create_operands(case: Case, seed: int, caches: int, device: torch.device) -> Operands:
    """Random operands. What lies beyond a sequence's length is random too: a kernel that reads it is wrong, and seen
    to be so by the oracle. The first and last value of a sequence weigh about half of all others together, so that
    neither is missed unnoticed."""
    generator = torch.Generator(device).manual_seed(seed)
    lengths = case.lengths(seed)
    held = torch.tensor(lengths, dtype=torch.int32, device=device)
    q = _normal((case.batch, case.query_heads, 1, case.head_dim), case, generator)
    table = _table(case, seed, device)
    pairs = []
    for _ in range(caches):
        k, v = _cache(case, generator), _cache(case, generator)
        _weigh_edges(v, held, table)
        pairs.append((k, v))
    mask = _mask(case, held)
    bounds: Tensor | None
    if table is not None:
        bounds = length_bounds(held, case.spec().kv_len)
    else:
        bounds = None if mask is None else mask_bounds(mask, case.capacity)
    return Operands(case, lengths, q, tuple(pairs), held, mask, bounds, table)


def _normal(shape: tuple[int, ...], case: Case, generator: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=case.torch_dtype, device=generator.device).normal_(generator=generator)


def _cache(case: Case, generator: torch.Generator) -> Tensor:
    page = case.layout.page_size
    if page is not None:
        return _normal((case.batch * case.pages_per_sequence, page, case.kv_heads, case.head_dim), case, generator)
    if case.layout is CacheLayout.BSHD:
        stored = _normal((case.batch, case.capacity, case.kv_heads, case.head_dim), case, generator)
        return stored.transpose(1, 2)
    return _normal((case.batch, case.kv_heads, case.capacity, case.head_dim), case, generator)


def _table(case: Case, seed: int, device: torch.device) -> Tensor | None:
    """Every page once, in random order: what an allocator leaves after a while."""
    if case.layout.page_size is None:
        return None
    order = torch.randperm(case.batch * case.pages_per_sequence, generator=torch.Generator().manual_seed(seed))
    return order.to(torch.int32).view(case.batch, case.pages_per_sequence).to(device)


def _mask(case: Case, held: Tensor) -> Tensor | None:
    if not case.needs_lengths or case.layout.page_size is not None:
        return None
    positions = torch.arange(case.capacity, device=held.device)
    return (positions < held[:, None])[:, None, None, :].contiguous()


def _weigh_edges(v: Tensor, held: Tensor, table: Tensor | None) -> None:
    """Multiply each sequence's first and last value by half the square root of its length, where that is above 1."""
    sequence = torch.arange(held.shape[0], device=held.device)
    weight = (held.float().sqrt() / 2).clamp(min=1.0).to(v.dtype)[:, None, None]
    last = held.long() - 1
    for position, wanted in ((torch.zeros_like(last), held > 0), (last, held > 1)):
        factor = torch.where(wanted[:, None, None], weight, torch.ones_like(weight))
        if table is None:
            v[sequence, :, position] *= factor
        else:
            page_size = v.shape[1]
            v[table[sequence, position // page_size].long(), position % page_size] *= factor
