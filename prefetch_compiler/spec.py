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
one are (1, 1|kv_heads, 1) or (pages, 1|kv_heads, page_size). Zero points have the shapes of scales: what is subtracted
from stored numbers before they are scaled, or (a minimum) added to scaled ones. Either may also be of shape (1|batch,
1|kv_heads, rows, columns), where ``rows`` divides kv_len and ``columns`` the head's dim: each is shared by a group of
adjacent tokens and columns.

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
QUANTISED_FORMATS = {
    torch.float8_e4m3fn: "e4m3",
    torch.float8_e5m2: "e5m2",
    torch.int8: "int8",
    torch.uint8: "uint8",
}


# What zeros of a quantised cache may be kept in: integers where numbers are integers.
ZERO_DTYPES = (*SUPPORTED_DTYPES, torch.int8, torch.uint8, torch.int16, torch.int32)
# What is subtracted from unsigned numbers as they are taken out of a cache, so that they lie about 0; and the largest
# magnitude of what is taken out.
CENTRES = {"e4m3": 0, "e5m2": 0, "int8": 0, "uint8": 128}
RANGES = {"e4m3": 448, "e5m2": 57344, "int8": 128, "uint8": 128}
# Formats of four bits, two numbers a byte of uint8 or int8: ``interleaved`` has columns 2i and 2i + 1 in the low and
# the high half of byte i; ``halves`` the first half of the columns in the low ones, and the second in the high ones.
# int4 is two's complement.
PACKED_FORMATS = ("int4_halves", "int4_interleaved", "uint4_halves", "uint4_interleaved")
PACKED_DTYPES = (torch.uint8, torch.int8)
CENTRES |= {name: 8 if name.startswith("uint4") else 0 for name in PACKED_FORMATS}
RANGES |= dict.fromkeys(PACKED_FORMATS, 8)


class MaskKind(str, Enum):
    """How a site hides keys. ``lengths`` int32 or int64 (batch,) are on the device: a sequence's first keys count."""

    NONE = "none"
    LENGTHS = "lengths"
    BOOL = "bool"
    ADDITIVE = "additive"


class ScaleGranularity(str, Enum):
    """What shares one scale. A head's scale may differ between sequences. A ``group`` is of some of a token's columns,
    or of some tokens' numbers in a column, or both."""

    NONE = "none"
    TENSOR = "tensor"
    HEAD = "head"
    TOKEN = "token"
    GROUP = "group"


@dataclass(frozen=True)
class Storage:
    """What the tensors of a quantised cache do not say of themselves.

    Attributes:
        key_minima, value_minima: whether zeros are added to scaled numbers (number * scale + minimum), and not
            subtracted from stored ones ((number - zero) * scale).
        packing: one of PACKED_FORMATS, or empty where each number is an element.
    """

    key_minima: bool = False
    value_minima: bool = False
    packing: str = ""

    def encode(self) -> str:
        """As text, which operators take."""
        flags = [name for name in _STORAGE_FLAGS if getattr(self, name)]
        return " ".join([*flags, *self.packing.split()])

    @classmethod
    def decode(cls, text: str) -> Storage:
        """Raises:
        ValueError: not such a text.
        """
        words = text.split()
        packing = [word for word in words if word not in _STORAGE_FLAGS]
        if len(packing) > 1 or not {*packing} <= {*PACKED_FORMATS}:
            raise ValueError(f"{text!r} says of no quantised cache how it is stored")
        return cls(**{name: name in words for name in _STORAGE_FLAGS}, packing="".join(packing))

    def columns(self, elements: int) -> int:
        """Of a row of as many elements."""
        return elements * 2 if self.packing else elements

    def elements(self, columns: int) -> int:
        """Of a row of as many columns."""
        return columns // 2 if self.packing else columns


_STORAGE_FLAGS = ("key_minima", "value_minima")


AS_THE_DTYPE_SAYS = Storage()


@dataclass(frozen=True)
class QuantisedCache:
    """How K and V are stored when not in the dtype of the queries: value = (number - zero) * scale, or number * scale +
    minimum.

    Attributes:
        dtype: one of QUANTISED_FORMATS, or of PACKED_DTYPES where ``storage`` has a packing.
        scale_dtype: of both scales, floating-point; None where neither K nor V has any.
        key_zeros, value_zeros: of zeros or minima, as ``storage`` says.
        zero_dtype: of both zeros, one of ZERO_DTYPES; None where neither K nor V has any.
        key_group, value_group: tokens (0: all) and columns of a group; None where neither scales nor zeros are of any.
    """

    dtype: torch.dtype
    key_scales: ScaleGranularity = ScaleGranularity.NONE
    value_scales: ScaleGranularity = ScaleGranularity.NONE
    scale_dtype: torch.dtype | None = None
    key_zeros: ScaleGranularity = ScaleGranularity.NONE
    value_zeros: ScaleGranularity = ScaleGranularity.NONE
    zero_dtype: torch.dtype | None = None
    storage: Storage = AS_THE_DTYPE_SAYS
    key_group: tuple[int, int] | None = None
    value_group: tuple[int, int] | None = None

    @property
    def number_format(self) -> str:
        """The name that kernels know it by."""
        return self.storage.packing or QUANTISED_FORMATS[self.dtype]

    @property
    def has_groups(self) -> bool:
        return self.key_group is not None or self.value_group is not None

    @property
    def scale_bytes_per_row(self) -> int:
        """Bytes of scales and zeros of tokens that are read with one key of one head; those of groups are not counted,
        which are a few percent."""
        sides = (
            (self.scale_dtype, (self.key_scales, self.value_scales)),
            (self.zero_dtype, (self.key_zeros, self.value_zeros)),
        )
        return sum(
            dtype.itemsize * granularities.count(ScaleGranularity.TOKEN)
            for dtype, granularities in sides
            if dtype is not None
        )

    def describe(self) -> str:
        """``uint8 scales=token/token zeros=token/token``; ``min`` before the granularity of minima, and tokens by
        columns of groups."""
        stored = self.storage.packing or str(self.dtype).removeprefix("torch.")
        words = [f"{stored} scales={self.key_scales.value}/{self.value_scales.value}"]
        if (self.key_zeros, self.value_zeros) != (ScaleGranularity.NONE,) * 2:
            keys = ("min-" if self.storage.key_minima else "") + self.key_zeros.value
            values = ("min-" if self.storage.value_minima else "") + self.value_zeros.value
            words.append(f"zeros={keys}/{values}")
        if self.has_groups:
            groups = ("x".join(map(str, group)) if group else "-" for group in (self.key_group, self.value_group))
            words.append(f"groups={'/'.join(groups)}")
        return " ".join(words)


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
    one more logit, which takes its share of the softmax and no value. ``lse`` says that the natural log-sum-exp of each
    row's scores, its sink among them, is returned too: float32 (batch, query_heads, q_len), -inf where there is neither
    a key to see nor a sink.

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
    lse: bool = False
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

    def stored_elements(self, columns: int) -> int:
        """Elements that hold as many columns of K or V."""
        return columns if self.cache is None else self.cache.storage.elements(columns)

    @property
    def kv_bytes_per_key(self) -> int:
        """Bytes of K and V, and of scales per token, that one key position holds, over batch and heads. A latent counts
        once."""
        scales = 0 if self.cache is None else self.cache.scale_bytes_per_row
        row = self.stored_elements(sum(self.stored_dims)) * self.kv_dtype.itemsize + scales
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
            dtype += f"/{self.cache.describe()}"
        return (
            f"{self.query_heads}q/{self.kv_heads}kv {dims} q{size('q_len', self.q_len)} "
            f"S{size('kv_len', self.kv_len)} b{size('batch', self.batch)} {dtype} mask={mask}{pages}"
            + (f" softcap={self.softcap:g}" if self.softcap is not None else "")
            + (" sink" if self.sink else "")
        )
