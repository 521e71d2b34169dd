"""AttentionSpec: what one decode-attention site computes. Shapes and units are documented here, once.

Names used everywhere in this package::

    q     (batch, query_heads, q_len,  head_dim)
    k     (batch, kv_heads,    kv_len, head_dim)    kv_len is the capacity of the cache, not what it holds
    v     (batch, kv_heads,    kv_len, value_dim)
    mask  (1|batch, 1|query_heads, 1|q_len, 1|kv_len), bool (True: may attend) or additive float
    out   (batch, query_heads, q_len,  value_dim)

A paged cache has ``page_size`` keys a page and K and V in pools that all sequences share::

    k     (pages, kv_heads, page_size, head_dim)    the layouts' batch strides lead from page to page
    v     (pages, kv_heads, page_size, value_dim)
    table (batch, kv_len / page_size), int32        the pages of each sequence, in the order of its keys

A quantised cache holds k and v as numbers that are to be multiplied by scales, each of which is absent, one for the
whole tensor, or of shape (1|batch, 1|kv_heads, 1|kv_len): one per head, or one per token of a head. Those of a paged
one are (1, 1|kv_heads, 1) or (pages, 1|kv_heads, page_size).

A latent cache (multi-head latent attention, absorbed) holds a latent and a rotary key for each position, which all
query heads share. K is the two side by side, V is the latent again::

    q       (batch, query_heads, q_len, head_dim + rope_dim)
    k = v   (batch, 1, kv_len, head_dim)    the latents, once; head_dim is value_dim
    rope    (batch, 1, kv_len, rope_dim)

``group`` is query_heads // kv_heads: query head ``h`` reads KV head ``h // group``. Strides are in elements.
A size that torch.compile keeps symbolic is stored by its hint and named in ``symbolic``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import torch

MAX_Q_LEN = 16
MAX_HEAD_DIM = 256
HEAD_DIM_MULTIPLE = 8
PAGE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Columns of a latent cache's rotary keys, and the most that its latents may have.
ROPE_DIMS = (16, 32, 64, 128)
MAX_LATENT_DIM = 512
SUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# What a quantised cache may hold, by the names that kernels know them by.
QUANTISED_FORMATS = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2", torch.int8: "int8"}


class MaskKind(str, Enum):
    """How a site hides keys. ``lengths`` int32 or int64 (batch,) are on the device: a sequence's first keys count."""

    NONE = "none"
    LENGTHS = "lengths"
    BOOL = "bool"
    ADDITIVE = "additive"


class ScaleGranularity(str, Enum):
    """What shares one scale. A head's scale may differ between sequences."""

    NONE = "none"
    TENSOR = "tensor"
    HEAD = "head"
    TOKEN = "token"


@dataclass(frozen=True)
class QuantisedCache:
    """How K and V are stored when not in the dtype of the queries. Symmetric: value = stored number * scale. Zero
    points and scales of groups of columns would be further fields here.

    Attributes:
        dtype: one of QUANTISED_FORMATS.
        scale_dtype: of both scales, floating-point; None where neither K nor V has any.
    """

    dtype: torch.dtype
    key_scales: ScaleGranularity = ScaleGranularity.NONE
    value_scales: ScaleGranularity = ScaleGranularity.NONE
    scale_dtype: torch.dtype | None = None

    @property
    def scale_bytes_per_row(self) -> int:
        """Bytes of scales that are read with one key of one head."""
        per_token = [self.key_scales, self.value_scales].count(ScaleGranularity.TOKEN)
        return 0 if self.scale_dtype is None else per_token * self.scale_dtype.itemsize


@dataclass(frozen=True)
class TensorLayout:
    """Strides in elements of a (batch, heads, length, dim) tensor whose last stride is 1."""

    batch_stride: int
    head_stride: int
    row_stride: int

    @property
    def strides(self) -> tuple[int, int, int]:
        return self.batch_stride, self.head_stride, self.row_stride

    def rows_aligned(self, element_bytes: int) -> bool:
        """Whether every row starts at a multiple of 16 bytes, given that the first one does."""
        # One test for all strides: this is asked for every site and every candidate configuration.
        return (self.batch_stride | self.head_stride | self.row_stride) * element_bytes % 16 == 0

    def aligned(self, element_bytes: int) -> bool:
        """Whether every stride is a positive multiple of 16 bytes: what TMA asks of a global tensor (PTX ISA,
        "Tensor-map"). A stride of 0 repeats rows, which a tensor map cannot say."""
        return self.rows_aligned(element_bytes) and min(self.batch_stride, self.head_stride, self.row_stride) > 0


@dataclass(frozen=True)
class AttentionSpec:
    """A decode-attention site, complete: two sites with equal specs are served by the same kernel.

    ``out_heads_first`` tells the memory order of the output: True for (batch, head, q, dim) contiguous, False for
    (batch, q, head, dim) contiguous seen through a transpose. ``mask_per_row`` is True when the mask differs between
    query heads or query positions, so that it must be loaded per row and not once per key. ``dtype`` is that of the
    queries and the output, and of K and V where ``cache`` is None. ``page_size`` is 0 for a cache in one piece; of a
    paged one ``kv_len`` is whole pages.

    ``is_causal`` is SDPA's: query i sees keys 0..i. With lengths, which SDPA does not have, the last ``q_len`` keys of
    a sequence are those of its queries: query i sees keys 0..length - q_len + i.

    ``softcap`` c makes scores ``c * tanh(scale * q.k / c)`` before the mask. ``sink`` says that every query head has
    one more logit, which takes its share of the softmax and no value.

    ``rope_dim`` is not 0 for a latent cache, whose rotary keys lie in ``rope_layout``; ``key_layout`` and
    ``value_layout`` are both that of its latents.
    """

    batch: int
    query_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    scale: float
    key_layout: TensorLayout
    value_layout: TensorLayout
    mask: MaskKind = MaskKind.NONE
    mask_dtype: torch.dtype | None = None
    mask_per_row: bool = False
    is_causal: bool = False
    out_heads_first: bool = True
    softcap: float | None = None
    sink: bool = False
    symbolic: frozenset[str] = field(default_factory=frozenset)
    cache: QuantisedCache | None = None
    page_size: int = 0
    rope_dim: int = 0
    rope_layout: TensorLayout | None = None

    @property
    def masked(self) -> bool:
        """Whether there is a mask, and with it bounds: keys that count need not begin with the first."""
        return self.mask in (MaskKind.BOOL, MaskKind.ADDITIVE)

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.query_heads // self.kv_heads

    @property
    def rows(self) -> int:
        """Query rows that share one KV head: group * q_len."""
        return self.group * self.q_len

    @property
    def query_dim(self) -> int:
        """Columns of a query."""
        return self.head_dim + self.rope_dim

    @property
    def stored_dims(self) -> tuple[int, int]:
        """Columns of the two tensors that are read: K and V, or a latent cache's latents and rotary keys."""
        return (self.head_dim, self.rope_dim) if self.rope_dim else (self.head_dim, self.value_dim)

    @property
    def stored_layouts(self) -> tuple[TensorLayout, TensorLayout]:
        """Those of the two tensors that are read."""
        return self.key_layout, self.value_layout if self.rope_layout is None else self.rope_layout

    @property
    def element_bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def kv_dtype(self) -> torch.dtype:
        """What K and V are stored as."""
        return self.dtype if self.cache is None else self.cache.dtype

    @property
    def kv_bytes_per_key(self) -> int:
        """Bytes of K and V, and of scales per token, that one key position holds, over batch and heads. A latent counts
        once."""
        scales = 0 if self.cache is None else self.cache.scale_bytes_per_row
        row = sum(self.stored_dims) * self.kv_dtype.itemsize + scales
        return self.batch * self.kv_heads * row

    @property
    def capacity_bytes(self) -> int:
        """Bytes of K and V at full capacity: what masked SDPA reads whatever the cache holds."""
        return self.kv_bytes_per_key * self.kv_len

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """The first three sizes of K and V; a paged cache's pool has as many pages as its sequences need at most."""
        if self.page_size:
            return self.batch * self.kv_len // self.page_size, self.kv_heads, self.page_size
        return self.batch, self.kv_heads, self.kv_len

    @property
    def rows_aligned(self) -> bool:
        """Whether every row of K and V starts at a multiple of 16 bytes."""
        return all(layout.rows_aligned(self.kv_dtype.itemsize) for layout in self.stored_layouts)

    @property
    def tma_loadable(self) -> bool:
        """Whether K and V meet TMA's stride rules (16-byte multiples, none of them 0)."""
        return all(layout.aligned(self.kv_dtype.itemsize) for layout in self.stored_layouts)

    def describe(self) -> str:
        """One line for people: ``32q/8kv d128 q1 S4096 b16 bfloat16 mask=bool``."""

        def size(name: str, value: int) -> str:
            return f"{value}?" if name in self.symbolic else str(value)

        dims = f"d{self.head_dim}" if self.head_dim == self.value_dim else f"d{self.head_dim}/{self.value_dim}"
        if self.rope_dim:
            dims = f"latent {self.head_dim}+{self.rope_dim}"
        kinds = [self.mask.value] if self.mask is not MaskKind.NONE or not self.is_causal else []
        mask = "/".join([*kinds, *(["causal"] if self.is_causal else [])])
        pages = f" page={self.page_size}" if self.page_size else ""
        dtype = str(self.dtype).removeprefix("torch.")
        if self.cache is not None:
            scales = f"{self.cache.key_scales.value}/{self.cache.value_scales.value}"
            dtype += f"/{str(self.cache.dtype).removeprefix('torch.')} scales={scales}"
        return (
            f"{self.query_heads}q/{self.kv_heads}kv {dims} q{size('q_len', self.q_len)} "
            f"S{size('kv_len', self.kv_len)} b{size('batch', self.batch)} {dtype} mask={mask}{pages}"
            + (f" softcap={self.softcap:g}" if self.softcap is not None else "")
            + (" sink" if self.sink else "")
        )
