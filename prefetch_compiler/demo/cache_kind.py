"""The kinds of KV cache. No torch here: the command line names them before it knows that it will need torch."""

from __future__ import annotations

from enum import Enum


class CacheKind(str, Enum):
    """Hugging Face's cache classes: preallocated to its capacity, or growing with every token."""

    STATIC = "static"
    DYNAMIC = "dynamic"
