"""The key of an attention whose cache is quantised instead."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..database.key import QUANTISED_FEATURES, TuningKey, key_of
from ..spec import CENTRES, QUANTISED_FORMATS, QuantisedCache, ScaleGranularity
from .errors import InvalidCacheError

_FORMATS = {name: dtype for dtype, name in QUANTISED_FORMATS.items()}
UNSIGNED = [name for name, centre in CENTRES.items() if centre]
# Whether one scale is a tensor's or a head's makes no difference to a kernel.
_SCALES = {"head": ScaleGranularity.HEAD, "token": ScaleGranularity.TOKEN}


def quantised_key(key: TuningKey, quantised_format: str, scales: str) -> TuningKey:
    """``key`` with K and V stored in ``quantised_format``, with scales of heads or of tokens, and zero points where its
    numbers are unsigned. Alignment is that of rows of one byte an element.

    Raises:
        InvalidCacheError: an unknown format or granularity.
    """
    if quantised_format not in _FORMATS:
        raise InvalidCacheError("--kv-dtype", quantised_format, _FORMATS)
    if scales not in _SCALES:
        raise InvalidCacheError("--kv-scales", scales, _SCALES)
    granularity = _SCALES[scales]
    cache = QuantisedCache(_FORMATS[quantised_format], granularity, granularity)
    if quantised_format in UNSIGNED:
        cache = replace(cache, key_zeros=granularity, value_zeros=granularity, zero_dtype=torch.float32)
    plain = replace(key, features=tuple(feature for feature in key.features if feature not in QUANTISED_FEATURES))
    return key_of(replace(plain.spec(), cache=cache))
