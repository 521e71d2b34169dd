"""The key of an attention whose cache is quantised instead."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..database.key import EXAMPLE_GROUP, QUANTISED_FEATURES, TuningKey, key_of
from ..spec import CENTRES, PACKED_FORMATS, QUANTISED_FORMATS, QuantisedCache, ScaleGranularity, Storage, TensorLayout
from .errors import InvalidCacheError

_FORMATS = {name: dtype for dtype, name in QUANTISED_FORMATS.items()} | dict.fromkeys(PACKED_FORMATS, torch.uint8)
UNSIGNED = [name for name, centre in CENTRES.items() if centre]
# Whether one scale is a tensor's or a head's makes no difference to a kernel.
_SCALES = {one.value: one for one in (ScaleGranularity.HEAD, ScaleGranularity.TOKEN, ScaleGranularity.GROUP)}


def quantised_key(key: TuningKey, quantised_format: str, scales: str) -> TuningKey:
    """``key`` with K and V stored in ``quantised_format``, with scales of heads, tokens or groups, and zero points
    where its numbers are unsigned. Alignment is that of rows of one byte an element.

    Raises:
        InvalidCacheError: an unknown format or granularity.
    """
    if quantised_format not in _FORMATS:
        raise InvalidCacheError("--kv-dtype", quantised_format, _FORMATS)
    if scales not in _SCALES:
        raise InvalidCacheError("--kv-scales", scales, _SCALES)
    granularity = _SCALES[scales]
    storage = Storage(packing=quantised_format if quantised_format in PACKED_FORMATS else "")
    cache = QuantisedCache(_FORMATS[quantised_format], granularity, granularity, storage=storage)
    if quantised_format in UNSIGNED:
        cache = replace(cache, key_zeros=granularity, value_zeros=granularity, zero_dtype=torch.float32)
    if granularity is ScaleGranularity.GROUP:
        groups = ((1, math.gcd(dim, EXAMPLE_GROUP)) for dim in (key.head_dim, key.value_dim))
        cache = replace(cache, key_group=next(groups), value_group=next(groups))
    plain = replace(key, features=tuple(feature for feature in key.features if feature not in QUANTISED_FEATURES))
    spec = plain.spec()
    keys, values = (_halved(one) if storage.packing else one for one in (spec.key_layout, spec.value_layout))
    return key_of(replace(spec, cache=cache, key_layout=keys, value_layout=values))


def _halved(layout: TensorLayout) -> TensorLayout:
    """Of half as many elements."""
    return TensorLayout(*(stride // 2 for stride in layout.strides))
