"""TuningKey: the part of a spec that decides the best configuration, with sizes in buckets.

Rounding rule: a size belongs to the bucket of the next power of two at or above it, so bucket ``n`` holds n/2 < size
<= n. Records are measured at the bucket's upper corner (:meth:`TuningKey.spec`), where every resource that a
configuration takes is largest: what is admissible there is admissible over the whole bucket.

Not part of a key, because they do not change which configuration is best: the softmax scale, the value of a soft cap
and the memory order of the output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from enum import Enum

import torch

from ..errors import InvalidKeyNameError
from ..spec import AttentionSpec, MaskKind, TensorLayout

# A symbolic length grows without recompiling, so its hint says little: plan for a cache worth splitting.
PLANNED_SYMBOLIC_KV_LEN = 8192
# Elements between the rows of the ``strided`` example: 16-byte aligned for every dtype.
STRIDED_GAP = 16
# A key does not say what scores are capped at: all caps take the same time. This is Gemma 2's.
EXAMPLE_SOFTCAP = 50.0
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Layout(str, Enum):
    """Where a key's neighbours lie: ``bhsd`` has the rows of a head adjacent, ``bshd`` the heads of a position."""

    BHSD = "bhsd"
    BSHD = "bshd"
    STRIDED = "strided"


class Alignment(str, Enum):
    """What the strides of K and V allow: TMA, 16-byte copies, or neither."""

    TMA = "tma"
    ROWS = "rows"
    NONE = "none"


class MaskClass(str, Enum):
    """``*_rows`` masks differ between query heads or positions, so that they are loaded per row."""

    NONE = "none"
    CAUSAL = "causal"
    BOOL = "bool"
    BOOL_ROWS = "bool_rows"
    ADDITIVE = "additive"
    ADDITIVE_ROWS = "additive_rows"


class Feature(str, Enum):
    """What else decides: ``growing`` lengths are symbolic, and planned for as PLANNED_SYMBOLIC_KV_LEN at least;
    ``sink`` and ``softcap`` as in AttentionSpec."""

    GROWING = "growing"
    SINK = "sink"
    SOFTCAP = "softcap"


def bucket(size: int) -> int:
    """The power of two at or above ``size`` (1 for 0)."""
    return 1 << max(0, size - 1).bit_length()


@dataclass(frozen=True, order=True)
class TuningKey:
    """Sizes named ``*_bucket`` are upper ends of their buckets; head counts and dims are exact.

    ``kv_dtype`` is what the cache holds; ``mask_dtype`` is None but for additive masks.
    """

    dtype: str
    kv_dtype: str
    group: int
    kv_heads: int
    head_dim: int
    value_dim: int
    q_len_bucket: int
    batch_bucket: int
    capacity_bucket: int
    layout: Layout
    alignment: Alignment
    mask: MaskClass
    mask_dtype: str = ""
    features: tuple[Feature, ...] = ()

    @property
    def name(self) -> str:
        """One line, unique, for people and for study names: ``bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma bool``."""
        dtype = self.dtype if self.dtype == self.kv_dtype else f"{self.dtype}/{self.kv_dtype}"
        dims = f"d{self.head_dim}" if self.head_dim == self.value_dim else f"d{self.head_dim}/{self.value_dim}"
        mask = self.mask.value + (f"-{self.mask_dtype}" if self.mask_dtype else "")
        words = [
            dtype, f"{self.group * self.kv_heads}q/{self.kv_heads}kv", dims, f"q{self.q_len_bucket}",
            f"b{self.batch_bucket}", f"s{self.capacity_bucket}", f"{self.layout.value}-{self.alignment.value}", mask,
            *(feature.value for feature in self.features),
        ]  # fmt: skip
        return " ".join(words)

    def at(self, *, batch: int, capacity: int) -> TuningKey:
        """The key of another bucket."""
        return replace(self, batch_bucket=batch, capacity_bucket=capacity)

    def spec(self) -> AttentionSpec:
        """The largest member: what is measured, and where admissibility is decided."""
        dims = (self.head_dim, self.value_dim)
        key_layout, value_layout = (self._tensor_layout(dim) for dim in dims)
        kind, per_row = _MASKS[self.mask]
        mask_dtype = {MaskKind.NONE: None, MaskKind.BOOL: torch.bool}.get(kind, _DTYPES.get(self.mask_dtype))
        return AttentionSpec(
            batch=self.batch_bucket,
            query_heads=self.group * self.kv_heads,
            kv_heads=self.kv_heads,
            q_len=self.q_len_bucket,
            kv_len=self.capacity_bucket,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            dtype=_DTYPES[self.dtype],
            scale=self.head_dim**-0.5,
            key_layout=key_layout,
            value_layout=value_layout,
            mask=kind,
            mask_dtype=mask_dtype,
            mask_per_row=per_row,
            is_causal=self.mask is MaskClass.CAUSAL,
            softcap=EXAMPLE_SOFTCAP if Feature.SOFTCAP in self.features else None,
            sink=Feature.SINK in self.features,
            symbolic=frozenset({"kv_len"} if Feature.GROWING in self.features else ()),
        )

    def _tensor_layout(self, dim: int) -> TensorLayout:
        heads, length = self.kv_heads, self.capacity_bucket
        row = dim + STRIDED_GAP if self.layout is Layout.STRIDED else dim
        # A batch stride of 0 (one cache for all sequences) is what keeps 16-byte rows from TMA; an odd one, any row.
        natural = heads * length * row
        batch = {Alignment.TMA: natural, Alignment.ROWS: 0, Alignment.NONE: natural + 1}[self.alignment]
        if self.layout is Layout.BSHD:
            return TensorLayout(batch, row, heads * row)
        return TensorLayout(batch, length * row, row)


_MASKS = {
    MaskClass.NONE: (MaskKind.NONE, False),
    MaskClass.CAUSAL: (MaskKind.NONE, False),
    MaskClass.BOOL: (MaskKind.BOOL, False),
    MaskClass.BOOL_ROWS: (MaskKind.BOOL, True),
    MaskClass.ADDITIVE: (MaskKind.ADDITIVE, False),
    MaskClass.ADDITIVE_ROWS: (MaskKind.ADDITIVE, True),
}
_MASK_CLASSES = {(kind, per_row): mask for mask, (kind, per_row) in _MASKS.items() if mask is not MaskClass.CAUSAL}


def key_of(spec: AttentionSpec) -> TuningKey:
    """The key that ``spec`` is tuned and looked up by."""
    growing = "kv_len" in spec.symbolic
    capacity = max(spec.kv_len, PLANNED_SYMBOLIC_KV_LEN) if growing else spec.kv_len
    dtype = _dtype_name(spec.dtype)
    additive = spec.mask is MaskKind.ADDITIVE and spec.mask_dtype is not None
    per_row = spec.mask_per_row and spec.mask is not MaskKind.NONE
    return TuningKey(
        dtype=dtype,
        kv_dtype=dtype,
        group=spec.group,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        value_dim=spec.value_dim,
        q_len_bucket=bucket(spec.q_len),
        batch_bucket=bucket(spec.batch),
        capacity_bucket=bucket(capacity),
        layout=_layout_of(spec),
        alignment=_alignment_of(spec),
        mask=MaskClass.CAUSAL if spec.is_causal else _MASK_CLASSES[spec.mask, per_row],
        mask_dtype=_dtype_name(spec.mask_dtype) if additive and spec.mask_dtype is not None else "",
        features=_features_of(spec),
    )


def _features_of(spec: AttentionSpec) -> tuple[Feature, ...]:
    """Sorted, as records want them."""
    has = {
        Feature.GROWING: "kv_len" in spec.symbolic,
        Feature.SINK: spec.sink,
        Feature.SOFTCAP: spec.softcap is not None,
    }
    return tuple(feature for feature, present in has.items() if present)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _layout_of(spec: AttentionSpec) -> Layout:
    keys, values = spec.key_layout, spec.value_layout
    if (keys.row_stride, values.row_stride) == (spec.head_dim, spec.value_dim):
        return Layout.BHSD
    # A lone head has no neighbour: whatever its stride says, its rows lie apart.
    if spec.kv_heads > 1 and (keys.head_stride, values.head_stride) == (spec.head_dim, spec.value_dim):
        return Layout.BSHD
    return Layout.STRIDED


def _alignment_of(spec: AttentionSpec) -> Alignment:
    if spec.tma_loadable:
        return Alignment.TMA
    return Alignment.ROWS if spec.rows_aligned else Alignment.NONE


def sort_key(key: TuningKey) -> tuple[object, ...]:
    """Order of records in a file: numbers as numbers, so that neighbouring buckets are neighbouring lines."""
    values = (getattr(key, field.name) for field in fields(key))
    return tuple(value.value if isinstance(value, Enum) else value for value in values)


_NAME = re.compile(
    r"(?P<dtype>\w+)(/(?P<kv_dtype>\w+))? (?P<heads>\d+)q/(?P<kv_heads>\d+)kv d(?P<dim>\d+)(/(?P<value_dim>\d+))?"
    r" q(?P<q_len>\d+) b(?P<batch>\d+) s(?P<capacity>\d+) (?P<layout>\w+)-(?P<alignment>\w+)"
    r" (?P<mask>\w+)(-(?P<mask_dtype>\w+))?(?P<features>( \w+)*)"
)


def parse_key(name: str) -> TuningKey:
    """The inverse of :attr:`TuningKey.name`. Sizes that are no powers of two go to their buckets.

    Raises:
        InvalidKeyNameError: ``name`` is not such a name.
    """
    match = _NAME.fullmatch(" ".join(name.split()))
    if match is None:
        raise InvalidKeyNameError(name, "it does not have that form")
    try:
        return _key_from(match)
    except ValueError as error:
        raise InvalidKeyNameError(name, str(error)) from error


def _key_from(match: re.Match[str]) -> TuningKey:
    heads, kv_heads = int(match["heads"]), int(match["kv_heads"])
    dtype, kv_dtype = match["dtype"], match["kv_dtype"] or match["dtype"]
    for given in (dtype, kv_dtype, match["mask_dtype"] or dtype):
        if given not in _DTYPES:
            raise ValueError(f"{given!r} is not one of {', '.join(_DTYPES)}")
    if kv_heads == 0 or heads == 0 or heads % kv_heads:
        raise ValueError(f"{kv_heads} KV heads do not divide {heads} query heads")
    mask = MaskClass(match["mask"])
    if (mask in (MaskClass.ADDITIVE, MaskClass.ADDITIVE_ROWS)) != (match["mask_dtype"] is not None):
        raise ValueError("additive masks have a dtype, as in additive-float16, and others have none")
    return TuningKey(
        dtype=dtype,
        kv_dtype=kv_dtype,
        group=heads // kv_heads,
        kv_heads=kv_heads,
        head_dim=int(match["dim"]),
        value_dim=int(match["value_dim"] or match["dim"]),
        q_len_bucket=bucket(int(match["q_len"])),
        batch_bucket=bucket(int(match["batch"])),
        capacity_bucket=bucket(int(match["capacity"])),
        layout=Layout(match["layout"]),
        alignment=Alignment(match["alignment"]),
        mask=mask,
        mask_dtype=match["mask_dtype"] or "",
        features=tuple(Feature(word) for word in match["features"].split()),
    )
