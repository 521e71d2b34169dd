"""Columns: the kernels that a case is measured with, and what each variant of the paper's kernel asks L2 for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Column(str, Enum):
    """What takes part, in the order of the table; values are what people read and what files hold."""

    NONE = "no prefetch"
    CONTROL = "control"
    NEXT_1 = "next tile, depth 1"
    NEXT_2 = "next tile, depth 2"
    NEXT_4 = "next tile, depth 4"
    OURS_DEPTH0 = "ours, depth 0"
    OURS_FREE = "ours, any depth"
    CUDNN = "SDPA cuDNN"


class PrefetchMode(str, Enum):
    """The template's PREFETCH."""

    NONE = "none"
    CONTROL = "control"
    NEXT = "next"


@dataclass(frozen=True)
class Prefetch:
    """What the paper's kernel asks L2 for; ``depth`` is in tiles, 0 but for the next one."""

    mode: PrefetchMode
    depth: int = 0


PREFETCH_OF = {
    Column.NONE: Prefetch(PrefetchMode.NONE),
    Column.CONTROL: Prefetch(PrefetchMode.CONTROL),
    Column.NEXT_1: Prefetch(PrefetchMode.NEXT, 1),
    Column.NEXT_2: Prefetch(PrefetchMode.NEXT, 2),
    Column.NEXT_4: Prefetch(PrefetchMode.NEXT, 4),
}
# The paper's kernel in all its variants, and those that prefetch a tile before it is needed.
PAPER_STYLE = tuple(PREFETCH_OF)
PREFETCHING = tuple(column for column, prefetch in PREFETCH_OF.items() if prefetch.mode is PrefetchMode.NEXT)
OURS = (Column.OURS_DEPTH0, Column.OURS_FREE)
