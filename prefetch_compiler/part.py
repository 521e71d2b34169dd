"""K/N: a share of a long job, for one GPU of several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from .errors import InvalidOptionError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """The ``number``-th of ``count``, from 1 on."""

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, items: Sequence[T]) -> tuple[T, ...]:
        """Every ``count``-th, where neighbours take about as long."""
        return tuple(items[self.number - 1 :: self.count])

    def stretch_of(self, items: Sequence[T]) -> tuple[T, ...]:
        """As many that follow one another, where neighbours share what they need."""
        first, end = (len(items) * edge // self.count for edge in (self.number - 1, self.number))
        return tuple(items[first:end])


def parse_part(text: str) -> Part:
    """``K/N``; all there is where ``text`` is empty.

    Raises:
        InvalidOptionError: it is something else.
    """
    if not text.strip():
        return Part()
    found = re.fullmatch(r"\s*([0-9]{1,4})/([0-9]{1,4})\s*", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InvalidOptionError("part", text, "K/N with K from 1 to N, as in 2/4")
    return Part(int(found[1]), int(found[2]))
