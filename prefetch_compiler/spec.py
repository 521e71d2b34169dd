"""AttentionSpec: what one decode-attention site computes. Shapes and units are documented here, once.

Names used everywhere in this package::

    q     (batch, query_heads, q_len,  head_dim)
    k     (batch, kv_heads,    kv_len, head_dim)    kv_len is the capacity of the cache, not what it holds
    v     (batch, kv_heads,    kv_len, value_dim)
    mask  (1|batch, 1|query_heads, 1|q_len, 1|kv_len), bool (True: may attend) or additive float
    out   (batch, query_heads, q_len,  value_dim)

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
SUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class MaskKind(str, Enum):
    """How a site hides keys."""

    NONE = "none"
    BOOL = "bool"
    ADDITIVE = "additive"


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
    query heads or query positions, so that it must be loaded per row and not once per key. ``softcap`` c makes scores
    ``c * tanh(scale * q.k / c)`` before the mask. ``sink`` says that every query head has one more logit, which takes
    its share of the softmax and no value.
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

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.query_heads // self.kv_heads

    @property
    def rows(self) -> int:
        """Query rows that share one KV head: group * q_len."""
        return self.group * self.q_len

    @property
    def element_bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def kv_bytes_per_key(self) -> int:
        """Bytes of K and V that one key position holds, over batch and heads."""
        return self.batch * self.kv_heads * (self.head_dim + self.value_dim) * self.element_bytes

    @property
    def capacity_bytes(self) -> int:
        """Bytes of K and V at full capacity: what masked SDPA reads whatever the cache holds."""
        return self.kv_bytes_per_key * self.kv_len

    @property
    def rows_aligned(self) -> bool:
        """Whether every row of K and V starts at a multiple of 16 bytes."""
        return self.key_layout.rows_aligned(self.element_bytes) and self.value_layout.rows_aligned(self.element_bytes)

    @property
    def tma_loadable(self) -> bool:
        """Whether K and V meet TMA's stride rules (16-byte multiples, none of them 0)."""
        return self.key_layout.aligned(self.element_bytes) and self.value_layout.aligned(self.element_bytes)

    def describe(self) -> str:
        """One line for people: ``32q/8kv d128 q1 S4096 b16 bfloat16 mask=bool``."""

        def size(name: str, value: int) -> str:
            return f"{value}?" if name in self.symbolic else str(value)

        dims = f"d{self.head_dim}" if self.head_dim == self.value_dim else f"d{self.head_dim}/{self.value_dim}"
        mask = "causal" if self.is_causal else self.mask.value
        return (
            f"{self.query_heads}q/{self.kv_heads}kv {dims} q{size('q_len', self.q_len)} "
            f"S{size('kv_len', self.kv_len)} b{size('batch', self.batch)} "
            f"{str(self.dtype).removeprefix('torch.')} mask={mask}"
            + (f" softcap={self.softcap:g}" if self.softcap is not None else "")
            + (" sink" if self.sink else "")
        )
