"""The shape of one decode step. No torch here: the command line builds one before it knows that it will need torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .errors import CapacityError


class CacheKind(str, Enum):
    """Hugging Face's cache classes: preallocated to its capacity, or growing with every token."""

    STATIC = "static"
    DYNAMIC = "dynamic"


@dataclass(frozen=True)
class DecodeState:
    """Shape of one decode step.

    Attributes:
        batch: sequences.
        held: keys in the cache of each sequence before the step.
        capacity: keys that a static cache has room for; a dynamic one holds what it holds.
        layers: decoder layers to keep; None keeps all.
        attention: transformers' attention implementation, as in ``sdpa`` or ``eager``.
    """

    batch: int
    held: int
    capacity: int
    layers: int | None
    cache: CacheKind
    attention: str

    def __post_init__(self) -> None:
        if self.cache is CacheKind.STATIC and self.capacity <= self.held:
            raise CapacityError(self.capacity, self.held + 1)
