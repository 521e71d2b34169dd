"""Caches in pages that the graph gathers before its attention, as serving code has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind, QuantisedCache, ScaleGranularity, TensorLayout

from .graph import DEVICE, Draw, Golden, Inputs, note, repeat_kv

BATCH, HEADS, KV_HEADS, PAGES, OF_SEQUENCE, DIM = 2, 4, 2, 11, 3, 16

# (pool, table) -> K or V (batch, kv_heads, keys, dim)
Gather = Callable[[Tensor, Tensor], Tensor]


def keys_then_heads(pool: Tensor, table: Tensor) -> Tensor:
    """Of a pool (pages, page_size, kv_heads, dim)."""
    return pool[table].flatten(1, 2).transpose(1, 2)


def heads_then_keys(pool: Tensor, table: Tensor) -> Tensor:
    """Of a pool (pages, kv_heads, page_size, dim)."""
    found = pool[table]
    return found.permute(0, 2, 1, 3, 4).reshape(table.shape[0], KV_HEADS, -1, found.shape[-1])


def heads_outermost(pool: Tensor, table: Tensor) -> Tensor:
    """Of a pool (kv_heads, pages, page_size, dim)."""
    return pool[:, table].flatten(2, 3).transpose(0, 1)


def selected(pool: Tensor, table: Tensor) -> Tensor:
    """By a table that is flattened first."""
    found = torch.index_select(pool, 0, table.flatten())
    return found.view(table.shape[0], -1, *pool.shape[2:]).transpose(1, 2)


def by_slots(pool: Tensor, table: Tensor) -> Tensor:
    """Of a pool of keys (keys, kv_heads, dim), each in a slot of its own."""
    return pool[table].transpose(1, 2)


def as_bytes(pool: Tensor, table: Tensor) -> Tensor:
    """fp8 that is gathered as uint8."""
    return keys_then_heads(pool.view(torch.uint8), table).view(pool.dtype)


def _of_keys_then_heads(page_size: int) -> tuple[tuple[int, ...], TensorLayout]:
    return (PAGES, page_size, KV_HEADS, DIM), TensorLayout(page_size * KV_HEADS * DIM, DIM, KV_HEADS * DIM)


def _of_heads_then_keys(page_size: int) -> tuple[tuple[int, ...], TensorLayout]:
    return (PAGES, KV_HEADS, page_size, DIM), TensorLayout(page_size * KV_HEADS * DIM, page_size * DIM, DIM)


def _of_heads_outermost(page_size: int) -> tuple[tuple[int, ...], TensorLayout]:
    return (KV_HEADS, PAGES, page_size, DIM), TensorLayout(page_size * DIM, PAGES * page_size * DIM, DIM)


def _of_slots(page_size: int) -> tuple[tuple[int, ...], TensorLayout]:
    # The keys of a slot are one: its row stride is that of a dimension that was added.
    return (PAGES, KV_HEADS, DIM), TensorLayout(KV_HEADS * DIM, DIM, 1)


_POOLS = {
    keys_then_heads: _of_keys_then_heads,
    heads_then_keys: _of_heads_then_keys,
    heads_outermost: _of_heads_outermost,
    selected: _of_keys_then_heads,
    by_slots: _of_slots,
    as_bytes: _of_keys_then_heads,
}


@dataclass(frozen=True)
class Paged:
    """One attention. ``format`` is that of a quantised cache, whose scales, one for each token of a head, lie in pages
    as well. ``other_pages`` and ``values_flipped`` have all or V's pages in another order."""

    name: str
    gather: Gather = keys_then_heads
    page_size: int = 4
    dtype: torch.dtype = torch.float32
    format: torch.dtype | None = None
    table_dtype: torch.dtype = torch.int64
    masked: bool = True
    negative: bool = False
    written: bool = False
    by_products: bool = False
    q_len: int = 1
    other_pages: bool = False
    values_flipped: bool = False

    @property
    def golden(self) -> Golden:
        recogniser = "recognise_softmax_chain" if self.by_products else "recognise_marked_sdpa"
        return Golden(self.name, self.program(), self.steps, (self.spec(),), recogniser)

    @property
    def heads(self) -> int:
        return HEADS

    @property
    def length_dim(self) -> int:
        """Of K and V as they are gathered."""
        return 2

    @property
    def kv_len(self) -> int:
        return OF_SEQUENCE * self.page_size

    def program(self) -> Callable[..., Tensor]:
        given = self

        def attend(
            q: Tensor, keys: Tensor, values: Tensor, table: Tensor, mask: Tensor | None, new: Tensor,
            key_scales: Tensor | None, value_scales: Tensor | None,
        ) -> Tensor:  # fmt: skip
            if given.written:
                keys[table[:, 1], 2] = new
                values[table[:, 1], 2] = new.flip(-1)
            of_values = table.flip(1) if given.values_flipped else table
            k, v = given.gather(keys, table), given.gather(values, of_values)
            if key_scales is not None and value_scales is not None:
                gather = keys_then_heads if given.gather is as_bytes else given.gather
                k = (k.float() * gather(key_scales, table)).to(q.dtype)
                v = (v.float() * gather(value_scales, table)).to(q.dtype)
            k, v = repeat_kv(k, HEADS // KV_HEADS), repeat_kv(v, HEADS // KV_HEADS)
            if not given.by_products:
                return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            added = None if mask is None else torch.where(mask, 0.0, float("-inf"))
            note(q, k, v, added, 1 / math.sqrt(DIM), None, None)
            scores = q @ k.mT / math.sqrt(DIM)
            return (scores if added is None else scores + added).softmax(-1) @ v

        return attend

    def steps(self) -> Sequence[Inputs]:
        draw = Draw(21, self.dtype)
        shape, _ = _POOLS[self.gather](self.page_size)

        def pool() -> Tensor:
            numbers = draw.normal(*shape)
            return numbers if self.format is None else (numbers * 40).round().clamp(-127, 127).to(self.format)

        def scales() -> Tensor | None:
            if self.format is None:
                return None
            exponents = draw.normal(*shape[:-1], 1).float().round().clamp(-2, 2) - 6
            # torch.exp2 is not exact everywhere.
            return torch.ldexp(torch.ones_like(exponents), exponents.to(torch.int32))

        table = torch.tensor([[7, 0, 3], [10, 2, 5]], device=DEVICE, dtype=self.table_dtype)
        if self.negative:
            table[1, 1:] = torch.tensor([-2, -3])
        if self.other_pages:
            table = table.flip(1)
        held = torch.tensor([[self.kv_len - 1], [self.page_size + 2]], device=DEVICE)
        visible = torch.arange(self.kv_len, device=DEVICE) < held
        return [
            {
                "q": draw.normal(BATCH, HEADS, self.q_len, DIM),
                "keys": pool(),
                "values": pool(),
                "table": table,
                "mask": visible[:, None, None] if self.masked else None,
                "new": draw.normal(BATCH, KV_HEADS, DIM),
                "key_scales": scales(),
                "value_scales": scales(),
            }
        ]

    def spec(self) -> AttentionSpec:
        _, layout = _POOLS[self.gather](self.page_size)
        token = ScaleGranularity.TOKEN
        kind = MaskKind.NONE if not self.masked else MaskKind.ADDITIVE if self.by_products else MaskKind.BOOL
        masks = {MaskKind.NONE: None, MaskKind.BOOL: torch.bool, MaskKind.ADDITIVE: torch.float32}
        return AttentionSpec(
            batch=BATCH,
            query_heads=HEADS,
            kv_heads=KV_HEADS,
            q_len=self.q_len,
            kv_len=self.kv_len,
            head_dim=DIM,
            value_dim=DIM,
            dtype=self.dtype,
            scale=1 / math.sqrt(DIM),
            key_layout=layout,
            value_layout=layout,
            mask=kind,
            mask_dtype=masks[kind],
            cache=None if self.format is None else QuantisedCache(self.format, token, token, torch.float32),
            page_size=self.page_size,
        )


PAGED = (
    Paged("paged"),
    Paged("paged_heads_first", heads_then_keys, page_size=2, q_len=3),
    Paged("paged_heads_outermost", heads_outermost, masked=False),
    Paged("paged_index_select", selected, table_dtype=torch.int32),
    Paged("paged_slots", by_slots, page_size=1),
    Paged("paged_negative_entries", negative=True),
    Paged("paged_and_written", written=True),
    Paged("paged_products", by_products=True),
    Paged("paged_int8", format=torch.int8, dtype=torch.float16),
    Paged("paged_e4m3_as_bytes", as_bytes, format=torch.float8_e4m3fn, dtype=torch.bfloat16),
)
GOLDEN = tuple(form.golden for form in PAGED)
