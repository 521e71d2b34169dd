"""TuningKey: the part of a spec that decides the best configuration, with sizes in buckets.

Rounding rule: a size belongs to the bucket of the next power of two at or above it, so bucket ``n`` holds n/2 < size
<= n. Records are measured at the bucket's upper corner (:meth:`TuningKey.spec`), where every resource that a
configuration takes is largest: what is admissible there is admissible over the whole bucket.

Not part of a key, because they do not change which configuration is best: the softmax scale, the value of a soft cap,
the memory order of the output, whether the log-sum-exp is returned too, and, of a quantised cache's scales, all but
whether there is one for each token; of its zeros, all but whether they are zero points or minima; the sizes of groups
and runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import Enum

import torch

from ..errors import InvalidKeyNameError
from ..spec import (
    PACKED_FORMATS,
    PAGE_SIZES,
    QUANTISED_FORMATS,
    ROPE_DIMS,
    AttentionSpec,
    MaskKind,
    QuantisedCache,
    ScaleGranularity,
    Storage,
    TensorLayout,
)

# A symbolic length grows without recompiling, so its hint says little: plan for a cache worth splitting.
PLANNED_SYMBOLIC_KV_LEN = 8192
# Columns of a group of them, or tokens of a run, in the example of a key that has such.
EXAMPLE_GROUP = 32
# Elements between the rows of the ``strided`` example: 16-byte aligned for every dtype.
STRIDED_GAP = 16
# A key does not say what scores are capped at: all caps take the same time. This is Gemma 2's.
EXAMPLE_SOFTCAP = 50.0
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_QUANTISED = {str(dtype).removeprefix("torch."): dtype for dtype in QUANTISED_FORMATS}
_QUANTISED |= dict.fromkeys(PACKED_FORMATS, torch.uint8)


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
    """``*_rows`` masks differ between query heads or positions, so that they are loaded per row; ``lengths`` are in
    place of a mask, ``causal_lengths`` with a causal one among the last keys of each."""

    NONE = "none"
    CAUSAL = "causal"
    LENGTHS = "lengths"
    CAUSAL_LENGTHS = "causal_lengths"
    BOOL = "bool"
    BOOL_ROWS = "bool_rows"
    ADDITIVE = "additive"
    ADDITIVE_ROWS = "additive_rows"


class Feature(str, Enum):
    """What else decides: ``growing`` lengths are symbolic, and planned for as PLANNED_SYMBOLIC_KV_LEN at least; a
    quantised cache may have a scale for each token of K or of V, and zero points (``zeros``) or minima, or scales or
    zeros that ``groups`` of a token's columns share, or ``runs`` of tokens, column by column or in groups; ``page16``
    and the like are paged caches, by the keys of a page; ``rope64`` and the like are latent caches, by the columns of
    their rotary keys; ``sink`` and ``softcap`` as in AttentionSpec."""

    GROWING = "growing"
    KEY_GROUPS = "key_groups"
    KEY_MINIMA = "key_minima"
    KEY_RUNS = "key_runs"
    KEY_TOKEN_SCALES = "key_token_scales"
    KEY_ZEROS = "key_zeros"
    PAGE1 = "page1"
    PAGE2 = "page2"
    PAGE4 = "page4"
    PAGE8 = "page8"
    PAGE16 = "page16"
    PAGE32 = "page32"
    PAGE64 = "page64"
    PAGE128 = "page128"
    PAGE256 = "page256"
    ROPE16 = "rope16"
    ROPE32 = "rope32"
    ROPE64 = "rope64"
    ROPE128 = "rope128"
    SINK = "sink"
    SOFTCAP = "softcap"
    VALUE_GROUPS = "value_groups"
    VALUE_MINIMA = "value_minima"
    VALUE_RUNS = "value_runs"
    VALUE_TOKEN_SCALES = "value_token_scales"
    VALUE_ZEROS = "value_zeros"

    @property
    def page_size(self) -> int:
        """Keys of a page; 0 for what says nothing of pages."""
        return _PAGE_SIZES.get(self, 0)

    @property
    def rope_dim(self) -> int:
        """Columns of rotary keys; 0 for what says nothing of a latent cache."""
        return _ROPE_DIMS.get(self, 0)


ZERO_FEATURES = frozenset({Feature.KEY_MINIMA, Feature.KEY_ZEROS, Feature.VALUE_MINIMA, Feature.VALUE_ZEROS})
# What only a quantised cache has.
GROUP_FEATURES = frozenset({Feature.KEY_GROUPS, Feature.KEY_RUNS, Feature.VALUE_GROUPS, Feature.VALUE_RUNS})
QUANTISED_FEATURES = ZERO_FEATURES | GROUP_FEATURES | {Feature.KEY_TOKEN_SCALES, Feature.VALUE_TOKEN_SCALES}
_PAGE_SIZES = {Feature(f"page{size}"): size for size in PAGE_SIZES}
_ROPE_DIMS = {Feature(f"rope{dim}"): dim for dim in ROPE_DIMS}


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

    @property
    def page_size(self) -> int:
        """Keys of a page; 0 for a cache in one piece."""
        return max((feature.page_size for feature in self.features), default=0)

    @property
    def rope_dim(self) -> int:
        """Columns of a latent cache's rotary keys; 0 for a cache of K and V."""
        return max((feature.rope_dim for feature in self.features), default=0)

    @property
    def bounded(self) -> bool:
        """Whether what sequences hold is known on the device only, from a mask or from lengths."""
        return self.mask not in (MaskClass.NONE, MaskClass.CAUSAL)

    def at(self, *, batch: int, capacity: int) -> TuningKey:
        """The key of another bucket."""
        return replace(self, batch_bucket=batch, capacity_bucket=capacity)

    def spec(self) -> AttentionSpec:
        """The largest member: what is measured, and where admissibility is decided. Its pages are whole."""
        page_size = self.page_size
        dims = (self.head_dim, self.value_dim)
        key_layout, value_layout = (self._tensor_layout(dim) for dim in dims)
        kind, per_row = _MASKS[self.mask]
        mask_dtype = torch.bool if kind is MaskKind.BOOL else _DTYPES.get(self.mask_dtype)
        return AttentionSpec(
            batch=self.batch_bucket,
            query_heads=self.group * self.kv_heads,
            kv_heads=self.kv_heads,
            q_len=self.q_len_bucket,
            kv_len=-(-self.capacity_bucket // page_size) * page_size if page_size else self.capacity_bucket,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            dtype=_DTYPES[self.dtype],
            scale=self.head_dim**-0.5,
            key_layout=key_layout,
            value_layout=value_layout,
            mask=kind,
            mask_dtype=mask_dtype,
            mask_per_row=per_row,
            is_causal=self.mask in _CAUSAL,
            softcap=EXAMPLE_SOFTCAP if Feature.SOFTCAP in self.features else None,
            sink=Feature.SINK in self.features,
            symbolic=frozenset({"kv_len"} if Feature.GROWING in self.features else ()),
            cache=self._cache(),
            page_size=page_size,
            rope_dim=self.rope_dim,
            rope_layout=self._tensor_layout(self.rope_dim) if self.rope_dim else None,
        )

    def _cache(self) -> QuantisedCache | None:
        """With the most scales and the widest: one for each head at least, in float32. Zeros are like scales."""
        if not is_quantised(self):
            return None
        given = set(self.features)
        keys, key_zeros, key_group = self._side("key", self.head_dim)
        values, value_zeros, value_group = self._side("value", self.value_dim)
        return QuantisedCache(
            _QUANTISED[self.kv_dtype], keys, values, torch.float32, key_zeros, value_zeros,
            torch.float32 if given & ZERO_FEATURES else None,
            Storage(Feature.KEY_MINIMA in given, Feature.VALUE_MINIMA in given, self._packing),
            key_group, value_group,
        )  # fmt: skip

    @property
    def _packing(self) -> str:
        return self.kv_dtype if self.kv_dtype in PACKED_FORMATS else ""

    def _side(self, side: str, dim: int) -> tuple[ScaleGranularity, ScaleGranularity, tuple[int, int] | None]:
        """Scales, zeros and group of K or of V."""
        token_scales, zeros, minima, groups, runs = (
            Feature(f"{side}_{name}") in self.features for name in ("token_scales", "zeros", "minima", "groups", "runs")
        )
        shared = ScaleGranularity.GROUP if groups or runs else ScaleGranularity.HEAD
        scales = ScaleGranularity.TOKEN if token_scales else shared
        # Zeros are of groups where scales of tokens leave those to them.
        of_zeros = shared if groups or runs else scales
        group = None
        if groups:
            group = (1, math.gcd(dim, EXAMPLE_GROUP))
        elif runs:
            group = (EXAMPLE_GROUP if self.capacity_bucket % EXAMPLE_GROUP == 0 else 0, 1)
        return scales, of_zeros if zeros or minima else ScaleGranularity.NONE, group

    def _tensor_layout(self, dim: int) -> TensorLayout:
        heads, length = self.kv_heads, self.page_size or self.capacity_bucket
        dim = Storage(packing=self._packing).elements(dim)
        row = dim + STRIDED_GAP if self.layout is Layout.STRIDED else dim
        # A batch stride of 0 (one cache for all sequences) is what keeps 16-byte rows from TMA; an odd one, any row. A
        # quantised cache's are even: its columns are read in pairs.
        natural = heads * length * row
        unaligned = natural + (2 if is_quantised(self) else 1)
        batch = {Alignment.TMA: natural, Alignment.ROWS: 0, Alignment.NONE: unaligned}[self.alignment]
        if self.layout is Layout.BSHD:
            return TensorLayout(batch, row, heads * row)
        return TensorLayout(batch, length * row, row)


_MASKS = {
    MaskClass.NONE: (MaskKind.NONE, False),
    MaskClass.CAUSAL: (MaskKind.NONE, False),
    MaskClass.LENGTHS: (MaskKind.LENGTHS, False),
    MaskClass.CAUSAL_LENGTHS: (MaskKind.LENGTHS, False),
    MaskClass.BOOL: (MaskKind.BOOL, False),
    MaskClass.BOOL_ROWS: (MaskKind.BOOL, True),
    MaskClass.ADDITIVE: (MaskKind.ADDITIVE, False),
    MaskClass.ADDITIVE_ROWS: (MaskKind.ADDITIVE, True),
}
_CAUSAL = (MaskClass.CAUSAL, MaskClass.CAUSAL_LENGTHS)
_MASK_CLASSES = {kind: mask for mask, kind in _MASKS.items() if mask not in _CAUSAL}


def key_of(spec: AttentionSpec) -> TuningKey:
    """The key that ``spec`` is tuned and looked up by."""
    growing = "kv_len" in spec.symbolic
    capacity = max(spec.kv_len, PLANNED_SYMBOLIC_KV_LEN) if growing else spec.kv_len
    dtype = _dtype_name(spec.dtype)
    additive = spec.mask is MaskKind.ADDITIVE and spec.mask_dtype is not None
    return TuningKey(
        dtype=dtype,
        kv_dtype=_kv_dtype_name(spec),
        group=spec.group,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        value_dim=spec.value_dim,
        q_len_bucket=bucket(spec.q_len),
        batch_bucket=bucket(spec.batch),
        capacity_bucket=bucket(capacity),
        layout=_layout_of(spec),
        alignment=_alignment_of(spec),
        mask=_mask_class_of(spec),
        mask_dtype=_dtype_name(spec.mask_dtype) if additive and spec.mask_dtype is not None else "",
        features=tuple(sorted(_features_of(spec))),
    )


def _mask_class_of(spec: AttentionSpec) -> MaskClass:
    if spec.is_causal:
        return MaskClass.CAUSAL_LENGTHS if spec.mask is MaskKind.LENGTHS else MaskClass.CAUSAL
    per_row = spec.mask_per_row and spec.mask in (MaskKind.BOOL, MaskKind.ADDITIVE)
    return _MASK_CLASSES[spec.mask, per_row]


def _features_of(spec: AttentionSpec) -> Iterator[Feature]:
    if "kv_len" in spec.symbolic:
        yield Feature.GROWING
    if spec.page_size:
        yield Feature(f"page{spec.page_size}")
    if spec.rope_dim:
        yield Feature(f"rope{spec.rope_dim}")
    if spec.sink:
        yield Feature.SINK
    if spec.softcap is not None:
        yield Feature.SOFTCAP
    if spec.cache is not None:
        yield from _features_of_cache(spec.cache)


def _features_of_groups(side: str, group: tuple[int, int] | None) -> Iterator[Feature]:
    if group is not None:
        yield Feature(f"{side}_groups" if group[0] == 1 else f"{side}_runs")


def _features_of_cache(cache: QuantisedCache) -> Iterator[Feature]:
    if cache.key_scales is ScaleGranularity.TOKEN:
        yield Feature.KEY_TOKEN_SCALES
    if cache.value_scales is ScaleGranularity.TOKEN:
        yield Feature.VALUE_TOKEN_SCALES
    if cache.key_zeros is not ScaleGranularity.NONE:
        yield Feature.KEY_MINIMA if cache.storage.key_minima else Feature.KEY_ZEROS
    if cache.value_zeros is not ScaleGranularity.NONE:
        yield Feature.VALUE_MINIMA if cache.storage.value_minima else Feature.VALUE_ZEROS
    yield from _features_of_groups("key", cache.key_group)
    yield from _features_of_groups("value", cache.value_group)


def is_quantised(key: TuningKey) -> bool:
    """Whether K and V are stored as numbers that are to be scaled."""
    return key.kv_dtype in _QUANTISED


def _kv_dtype_name(spec: AttentionSpec) -> str:
    packing = "" if spec.cache is None else spec.cache.storage.packing
    return packing or _dtype_name(spec.kv_dtype)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cache_problem(key: TuningKey) -> str | None:
    """Why there is no cache like that of ``key``, or None."""
    given = set(key.features)
    if given & QUANTISED_FEATURES and not is_quantised(key):
        return f"a cache of {key.kv_dtype} has no scales and no zeros"
    for side in ("key", "value"):
        token_scales, zeros, minima, groups, runs = (
            Feature(f"{side}_{name}") for name in ("token_scales", "zeros", "minima", "groups", "runs")
        )
        for one, other in ((zeros, minima), (groups, runs), (token_scales, runs)):
            if given >= {one, other}:
                return f"{one.value} and {other.value} exclude one another"
        if given >= {token_scales, groups} and not given & {zeros, minima}:
            return f"{token_scales.value} leave nothing for {groups.value} to share"
        if key.page_size and given & {groups, runs}:
            return f"a paged cache has no {(groups if groups in given else runs).value}"
    return None


def page_problem(key: TuningKey) -> str | None:
    """Why there is no paged cache like that of ``key``, or None."""
    pages = [feature.value for feature in key.features if feature.page_size]
    if len(pages) > 1 or (pages and key.mask is MaskClass.CAUSAL):
        return f"{' '.join(pages)} with {key.mask.value}: a paged cache has pages of one size, and causality of lengths"
    if pages and key.alignment is Alignment.ROWS:
        return "a paged cache whose pages lie apart is aligned for TMA, or not at all"
    return None


def latent_problem(key: TuningKey) -> str | None:
    """Why there is no latent cache like that of ``key``, or None."""
    ropes = [feature.value for feature in key.features if feature.rope_dim]
    if not ropes:
        return None
    if len(ropes) > 1 or key.kv_heads != 1 or key.head_dim != key.value_dim:
        return f"{' '.join(ropes)}: a latent cache has one KV head, values as wide as its keys, and one rotary key"
    if key.page_size or is_quantised(key):
        return f"{ropes[0]}: latent caches are in one piece, and in the dtype of the queries"
    return None


def _layout_of(spec: AttentionSpec) -> Layout:
    keys, values = spec.stored_layouts
    rows = tuple(spec.stored_elements(dim) for dim in spec.stored_dims)
    if (keys.row_stride, values.row_stride) == rows:
        return Layout.BHSD
    # A lone head has no neighbour: whatever its stride says, its rows lie apart.
    if spec.kv_heads > 1 and (keys.head_stride, values.head_stride) == rows:
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
    for given in (dtype, match["mask_dtype"] or dtype):
        if given not in _DTYPES:
            raise ValueError(f"{given!r} is not one of {', '.join(_DTYPES)}")
    if kv_dtype not in (*_DTYPES, *_QUANTISED):
        raise ValueError(f"{kv_dtype!r} is not one of {', '.join((*_DTYPES, *_QUANTISED))}")
    features = tuple(Feature(word) for word in match["features"].split())
    if kv_heads == 0 or heads == 0 or heads % kv_heads:
        raise ValueError(f"{kv_heads} KV heads do not divide {heads} query heads")
    mask = MaskClass(match["mask"])
    if (mask in (MaskClass.ADDITIVE, MaskClass.ADDITIVE_ROWS)) != (match["mask_dtype"] is not None):
        raise ValueError("additive masks have a dtype, as in additive-float16, and others have none")
    key = TuningKey(
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
        features=features,
    )
    problem = cache_problem(key) or page_problem(key) or latent_problem(key)
    if problem is not None:
        raise ValueError(problem)
    return key
