"""The key of an attention whose cache is quantised instead."""

from __future__ import annotations

from dataclasses import replace

from ..database.key import Feature, TuningKey, key_of
from ..spec import QUANTISED_FORMATS, QuantisedCache, ScaleGranularity
from .errors import InvalidCacheError

_FORMATS = {name: dtype for dtype, name in QUANTISED_FORMATS.items()}
# Whether one scale is a tensor's or a head's makes no difference to a kernel.
_TOKEN_SCALES = (Feature.KEY_TOKEN_SCALES, Feature.VALUE_TOKEN_SCALES)
_SCALES = {"head": ScaleGranularity.HEAD, "token": ScaleGranularity.TOKEN}


def quantised_key(key: TuningKey, quantised_format: str, scales: str) -> TuningKey:
    """``key`` with K and V stored in ``quantised_format``, with scales of heads or of tokens. Alignment is that of rows
    of one byte an element.

    Raises:
        InvalidCacheError: an unknown format or granularity.
    """
    if quantised_format not in _FORMATS:
        raise InvalidCacheError("--kv-dtype", quantised_format, _FORMATS)
    if scales not in _SCALES:
        raise InvalidCacheError("--kv-scales", scales, _SCALES)
    cache = QuantisedCache(_FORMATS[quantised_format], _SCALES[scales], _SCALES[scales])
    plain = replace(key, features=tuple(feature for feature in key.features if feature not in _TOKEN_SCALES))
    return key_of(replace(plain.spec(), cache=cache))
