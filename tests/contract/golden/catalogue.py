"""Every golden graph. A new form adds its module here."""

from __future__ import annotations

from . import (
    cross_attention,
    dequantised,
    dynamic_cache,
    evicted,
    flex,
    hand_written,
    latent,
    paged,
    products,
    rewritten_caches,
    static_cache,
)
from .graph import Golden

GOLDEN_GRAPHS: tuple[Golden, ...] = (
    *static_cache.GOLDEN,
    *dynamic_cache.GOLDEN,
    *cross_attention.GOLDEN,
    *rewritten_caches.GOLDEN,
    *hand_written.GOLDEN,
    *products.GOLDEN,
    *flex.GOLDEN,
    *dequantised.GOLDEN,
    *paged.GOLDEN,
    *evicted.GOLDEN,
    *latent.GOLDEN,
)
