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
    multi_head,
    paged,
    partial,
    products,
    rewritten_caches,
    sliding_window,
    speculation,
    static_cache,
    three_dimensional,
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
    *partial.GOLDEN,
    *three_dimensional.GOLDEN,
    *sliding_window.GOLDEN,
    *speculation.GOLDEN,
    *latent.GOLDEN,
    *multi_head.GOLDEN,
)
