"""Name -> template: where its kernels are, and which specs it covers. Adding a kernel is one template and one line."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefetch_compiler.config import KernelConfig
    from prefetch_compiler.database.key import TuningKey
    from prefetch_compiler.spec import AttentionSpec


@dataclass(frozen=True, eq=False)
class OptionalFeature:
    """What a template's kernels can do and many keys do without. Records of keys without it outlive its changes.

    Attributes:
        name: unique in its template.
        absent: parameter -> what it is when the feature is not there. Of the kernels, these are the values that every
            launch for a key without the feature has; helpers' parameters of these names must mean the same.
        present: whether a key has it.
        chosen: whether a configuration has it, whatever the key; None where that is no matter of configurations.
    """

    name: str
    absent: Mapping[str, bool | int | float | str | None]
    present: Callable[[TuningKey], bool]
    chosen: Callable[[KernelConfig], bool] | None = None

    def is_in(self, key: TuningKey, config: KernelConfig | None) -> bool:
        """Whether ``key`` has it, or ``config``; without one, whether any configuration has."""
        chosen = self.chosen is not None and (config is None or self.chosen(config))
        return chosen or self.present(key)


@dataclass(frozen=True)
class Template:
    """One kernel family.

    Attributes:
        entries: the kernels that are launched, each as ``module.function`` of this package.
        refusal: why a spec is not covered, or None when it is.
        features: what its kernels need not have compiled in. A parameter belongs to one feature.
    """

    name: str
    entries: tuple[str, ...]
    refusal: Callable[[AttentionSpec], str | None]
    features: tuple[OptionalFeature, ...] = ()

    def load(self, module: str) -> ModuleType:
        """Import one of the template's modules (and with it Triton).

        Raises:
            ImportError: Triton is not installed.
        """
        return importlib.import_module(f"{__package__}.{module}")

    @cached_property
    def feature_names(self) -> frozenset[str]:
        return frozenset(feature.name for feature in self.features)

    def features_of(self, key: TuningKey, config: KernelConfig | None) -> frozenset[str]:
        """Names of the features that ``key`` has, or ``config``; without one, any configuration."""
        return frozenset([one.name for one in self.features if one.is_in(key, config)])

    def absent_values(self, present: Collection[str]) -> dict[str, bool | int | float | str | None]:
        """Parameters of all features but those ``present``."""
        absent = [feature.absent for feature in self.features if feature.name not in present]
        return {name: value for values in absent for name, value in values.items()}


def _mask_refusal(spec: AttentionSpec) -> str | None:
    if spec.is_causal and spec.mask.value not in ("none", "lengths"):
        return "is_causal=True together with a mask: put the causality into the mask"
    if spec.page_size and spec.is_causal and spec.mask.value != "lengths":
        return "is_causal=True over a paged cache without lengths: pass lengths, or put the causality into a mask"
    return None


def _split_kv_refusal(spec: AttentionSpec) -> str | None:
    if spec.cache is not None:
        return "a quantised cache"
    if spec.rope_dim:
        return "a latent cache"
    if max(spec.head_dim, spec.value_dim) > 256:
        return f"head dims {spec.head_dim} and {spec.value_dim}: they must be 256 at most"
    return _mask_refusal(spec)


def _quantised_refusal(spec: AttentionSpec) -> str | None:
    if spec.cache is None:
        return "a cache that is not quantised"
    if spec.dtype.itemsize != 2:
        return f"queries of {spec.dtype}: the products are those of 16-bit numbers, which would round them"
    if spec.head_dim % 8 or spec.value_dim % 8:
        return f"head dims {spec.head_dim} and {spec.value_dim}: they must be multiples of 8"
    if max(spec.head_dim, spec.value_dim) > 256:
        return f"head dims {spec.head_dim} and {spec.value_dim}: they must be 256 at most"
    if spec.page_size and spec.cache.has_groups:
        return "a paged cache with scales or zeros of groups of columns or runs of tokens"
    if any(stride % 2 for layout in (spec.key_layout, spec.value_layout) for stride in layout.strides):
        return "K or V with an odd stride: columns are read in pairs"
    return _mask_refusal(spec)


def _latent_refusal(spec: AttentionSpec) -> str | None:
    if not spec.rope_dim:
        return "a cache of K and V, and not of latents"
    if spec.cache is not None or spec.page_size:
        return "latents that are quantised or in pages"
    if spec.kv_heads != 1 or spec.head_dim != spec.value_dim or spec.key_layout != spec.value_layout:
        return "latents that are not K's first columns and V, for all heads alike"
    if spec.head_dim % 8 or spec.head_dim > 512:
        return f"latents of {spec.head_dim} columns: they must be a multiple of 8 up to 512"
    if spec.rope_dim not in (16, 32, 64, 128):
        return f"rotary keys of {spec.rope_dim} columns: they must be a power of two from 16 to 128"
    return _mask_refusal(spec)


def _has_mask(key: TuningKey) -> bool:
    return key.mask.value not in ("none", "causal", "lengths", "causal_lengths")


def _has_lengths(key: TuningKey) -> bool:
    return key.mask.value in ("lengths", "causal_lengths")


def _has(feature: str) -> Callable[[TuningKey], bool]:
    return lambda key: feature in {present.value for present in key.features}


# Bounds are computed from the mask, and only from it.
_MASK = OptionalFeature(
    name="mask",
    absent={"MASK": "none", "MASK_PER_ROW": False, "mask_ptr": None, "bounds_ptr": None, "HAS_BOUNDS": False},
    present=_has_mask,
)
# Of prefetched tiles. What is chosen for a few keys leaves the records of the others as they are.
_EVICTION = OptionalFeature(
    "eviction",
    absent={"EVICTION": "normal"},
    present=lambda key: False,
    chosen=lambda config: config.prefetch_kind.eviction != "normal",
)
# A batch's tiles in one row. Of one template: the others share its merge, and have programs of one sequence.
_STREAMED = OptionalFeature(
    "streamed",
    absent={"STREAMED": False, "STREAM_ROWS": 0, "stream_batch": None},
    present=lambda key: False,
    chosen=lambda config: config.streams,
)
_NEVER_STREAMED = OptionalFeature("streamed", absent={"STREAMED": False, "STREAM_ROWS": 0}, present=lambda key: False)
_CLEAN_APART = OptionalFeature(
    "mask_by_row", absent={"CLEAN_APART": False}, present=lambda key: key.mask.value.endswith("_rows")
)
_CHAINS = OptionalFeature("chains", absent={"CHAINS": 1}, present=lambda key: key.dtype == "float32")
_LENGTHS = OptionalFeature("lengths", absent={"lengths_ptr": None, "HAS_LENGTHS": False}, present=_has_lengths)
_SOFTCAP = OptionalFeature("softcap", absent={"softcap": None}, present=_has("softcap"))
_SINK = OptionalFeature("sink", absent={"sink_ptr": None}, present=_has("sink"))
# No part of a key: it takes a store a row, and the configurations that are best without it serve it.
_LSE = OptionalFeature("lse", absent={"lse_ptr": None}, present=lambda key: False)
# Of how a kernel is launched, and not of a key.
_DOUBLE_SCALARS = OptionalFeature("double_scalars", absent={"DOUBLE_SCALARS": False}, present=lambda key: False)
_CAUSAL = OptionalFeature("causal", absent={"CAUSAL": False}, present=lambda key: key.mask.value == "causal")
# Among the last keys of a length, and not among the first of a cache.
_CAUSAL_TAIL = OptionalFeature(
    name="causal_tail",
    absent={"CAUSAL_TAIL": False, "row_last": None},
    present=lambda key: key.mask.value == "causal_lengths",
)
_PAGED = OptionalFeature(
    name="paged",
    absent={
        "PAGED": False,
        "PAGE_SIZE": 0,
        "TILES_IN_PAGES": False,
        "table_ptr": None,
        "table_stride": 0,
        "pages": None,
        "page_stride": None,
        "k_page_stride": None,
        "v_page_stride": None,
    },
    present=lambda key: key.page_size > 0,
)


def _zeros(side: str, *features: str) -> OptionalFeature:
    """Zero points or minima of K or of V, or what reading unsigned numbers as numbers about 0 makes of none."""
    letter = side[0]
    absent: dict[str, bool | int | float | str | None] = {
        f"{letter.upper()}_ZERO": "none",
        f"{letter.upper()}_ZERO_STRIDE": 0,
        f"{letter}_zero_ptr": None,
        f"{letter}_zero_batch_stride": 0,
        f"{letter}_zero_head_stride": 0,
    }
    more: dict[str, bool | int | float | str | None] = {"query_sum": None, "score_sum": None}
    if side == "value":
        more = {"value_scale": None, "V_RANGE": 0}
    return OptionalFeature(
        name=f"{side}_zeros",
        absent=absent | more,
        present=lambda key: _is_unsigned(key) or any(_has(feature)(key) for feature in features),
    )


def _is_unsigned(key: TuningKey) -> bool:
    return key.kv_dtype.startswith("uint")


def _groups(side: str) -> OptionalFeature:
    """Scales or zeros that groups of columns of K or of V share, or runs of tokens."""
    letter = side[0].upper()
    strides = ("GROUP_ROWS", "GROUP_COLUMNS", "SCALE_ROW", "SCALE_COLUMN", "ZERO_ROW", "ZERO_COLUMN")
    return OptionalFeature(
        name=f"{side}_groups",
        absent={f"{letter}_GROUP": "none"} | {f"{letter}_{name}": 0 for name in strides},
        present=lambda key: any(_has(feature)(key) for feature in (f"{side}_groups", f"{side}_runs")),
    )


_KEY_GROUPS, _VALUE_GROUPS = _groups("key"), _groups("value")
_KEY_ZEROS = _zeros("key", "key_zeros", "key_minima")
_VALUE_ZEROS = _zeros("value", "value_zeros", "value_minima")
_PACKED = OptionalFeature("packed", absent={"PACKED": False}, present=lambda key: "int4" in key.kv_dtype)
_UNSIGNED = OptionalFeature("unsigned", absent={"CENTRE": 0}, present=_is_unsigned)
_SCALE_PAGES = ("k_scale_page_stride", "v_scale_page_stride", "k_zero_page_stride", "v_zero_page_stride")
_PAGED_QUANTISED = replace(_PAGED, absent={**_PAGED.absent, **dict.fromkeys(_SCALE_PAGES)})
_KEY_TOKEN_SCALES = OptionalFeature("key_token_scales", absent={"K_SCALE_STRIDE": 0}, present=_has("key_token_scales"))
_VALUE_TOKEN_SCALES = OptionalFeature(
    "value_token_scales", absent={"V_SCALE_STRIDE": 0}, present=_has("value_token_scales")
)

# Whatever the cache is made of.
_FEATURES = (_MASK, _LENGTHS, _CAUSAL, _CAUSAL_TAIL, _SOFTCAP, _SINK, _LSE, _EVICTION)

SPLIT_KV = Template(
    name="split_kv_decode",
    entries=("split_kv_decode.split_kv_decode", "merge_splits.merge_splits"),
    refusal=_split_kv_refusal,
    features=(*_FEATURES, _STREAMED, _CLEAN_APART, _CHAINS, _PAGED, _DOUBLE_SCALARS),
)

QUANTISED = Template(
    name="quantised_decode",
    entries=("quantised_decode.quantised_decode", "merge_splits.merge_splits"),
    refusal=_quantised_refusal,
    features=(
        *_FEATURES,
        _NEVER_STREAMED,
        _PAGED_QUANTISED,
        _KEY_TOKEN_SCALES,
        _VALUE_TOKEN_SCALES,
        _KEY_ZEROS,
        _VALUE_ZEROS,
        _UNSIGNED,
        _PACKED,
        _KEY_GROUPS,
        _VALUE_GROUPS,
    ),
)

LATENT = Template(
    name="latent_decode",
    entries=("latent_decode.latent_decode", "latent_producer.latent_producer", "merge_splits.merge_splits"),
    refusal=_latent_refusal,
    features=(*_FEATURES, _NEVER_STREAMED),
)

TEMPLATES: tuple[Template, ...] = (SPLIT_KV, QUANTISED, LATENT)
